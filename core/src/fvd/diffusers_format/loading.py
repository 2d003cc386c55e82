"""From a path or hub id to networks: find the files, load them, and say clearly why that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from fvd.errors import ModelError
from fvd.model_folder import SHARED_PARTS, local_folder

_MODEL_FILES = ("config.json", "fvd.json", "*.safetensors", "*.safetensors.index.json")
_TOKENIZER_FILES = ("*.json", "*.model")
Loaded = TypeVar("Loaded")

_TIED_EMBEDDING = {"shared.weight", "encoder.embed_tokens.weight"}


def fetch_transformers(location: str, names: Sequence[str]) -> Path:
    """The local folder of ``location`` with its transformers; downloaded (once) when it is a hub id. Raises ModelError."""
    top_level = ("model_index.json", *_MODEL_FILES)
    return _fetch(location, [*top_level, *(f"{name}/{file}" for name in names for file in _MODEL_FILES)])


def fetch_components(location: str) -> Path:
    """The local folder of ``location`` with VAE, text encoder, tokenizer and scheduler. Raises ModelError."""
    files = ("scheduler_config.json", *_MODEL_FILES, *_TOKENIZER_FILES)
    return _fetch(location, ["model_index.json", "fvd.json", *(f"{name}/{file}" for name in SHARED_PARTS for file in files)])


def _fetch(location: str, patterns: list[str]) -> Path:
    folder = local_folder(location)
    if folder is not None:
        return folder
    try:
        return Path(snapshot_download(location, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # all of huggingface_hub's own errors are one or the other
        raise ModelError(
            f"there is no folder {location}, and as a hub id it cannot be fetched: {_first_line(error)}",
            cure="Correct the path, or download the model once while online; gated models need `hf auth login`.",
        ) from None


def load_network(network_class: Any, folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """A transformer or VAE of diffusers in eval mode; in bfloat16 diffusers keeps what the class names in float32.

    Raises ModelError, also when a weight is missing in the files.
    """
    network, report = _load(folder, lambda: network_class.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True))
    _refuse_missing(folder, set(report["missing_keys"]))
    return network.to(device).eval()


def load_text_encoder(encoder_class: Any, folder: Path, device: torch.device) -> Any:
    """A text encoder of transformers in float32, so that embeddings do not depend on where they are made. Raises ModelError."""
    encoder, report = _load(folder, lambda: encoder_class.from_pretrained(folder, output_loading_info=True))
    missing = set(report["missing_keys"])
    # T5's one tensor under two names: a file holds either, and versions of transformers differ in which they miss
    _refuse_missing(folder, missing if missing >= _TIED_EMBEDDING else missing - _TIED_EMBEDDING)
    return encoder.to(device=device, dtype=torch.float32).eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer  # imports what training from prepared data does without

    return _load(folder, lambda: AutoTokenizer.from_pretrained(folder))


def read_tensors(folder: Path, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Those of ``names`` that the safetensors files in ``folder`` hold, on the CPU, without reading the rest.

    Raises ModelError where there are no such files."""
    found: dict[str, torch.Tensor] = {}

    def read() -> None:
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise FileNotFoundError("it has no .safetensors file")
        for path in paths:
            with safe_open(path, framework="pt") as file:
                found.update({name: file.get_tensor(name) for name in names if name in file.keys()})  # noqa: SIM118

    _load(folder, read)
    return found


def _load(folder: Path, load: Callable[[], Loaded]) -> Loaded:
    try:
        with quiet():
            return load()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"{folder} cannot be loaded: {_first_line(error)}",
            cure="Its files do not fit its config.json, or are damaged; copy or download the model again.",
        ) from error


def _refuse_missing(folder: Path, missing: set[str]) -> None:
    if missing:
        names = ", ".join(sorted(missing)[:3]) + (", …" if len(missing) > 3 else "")
        raise ModelError(
            f"{folder}: {len(missing)} weights are missing in its files ({names}); they would be random",
            cure="The file is not whole, or belongs to another model; copy or download the model again.",
        )


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of the libraries while a model is loaded or saved: a training log has its own."""
    switches = (diffusers_logging, transformers_logging)
    enabled = [library for library in switches if library.is_progress_bar_enabled()]
    for library in enabled:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in enabled:
            library.enable_progress_bar()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
