"""From a path or hub id to networks: find the files, load them in float32, and say clearly why that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel
from transformers.utils import logging as transformers_logging

from fvd.errors import ModelError
from fvd_wan.folders import SHARED_COMPONENTS, TRANSFORMER_NAMES, TransformerFolder, local_folder

_MODEL_FILES = ("config.json", "fvd.json", "*.safetensors", "*.safetensors.index.json")
_TOKENIZER_FILES = ("*.json", "*.model")
Loaded = TypeVar("Loaded")

_TIED_EMBEDDING = {"shared.weight", "encoder.embed_tokens.weight"}


def fetch_transformers(location: str) -> Path:
    """The local folder of ``location`` with its transformers; downloaded (once) when it is a hub id. Raises ModelError."""
    top_level = ("model_index.json", *_MODEL_FILES)
    return _fetch(location, [*top_level, *(f"{name}/{file}" for name in TRANSFORMER_NAMES for file in _MODEL_FILES)])


def fetch_components(location: str) -> Path:
    """The local folder of ``location`` with VAE, text encoder, tokenizer and scheduler. Raises ModelError."""
    files = ("scheduler_config.json", *_MODEL_FILES, *_TOKENIZER_FILES)
    wanted = [f"{name}/{file}" for name in SHARED_COMPONENTS for file in files]
    return _fetch(location, ["model_index.json", "fvd.json", *wanted])


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


def load_transformer(
    folder: TransformerFolder, device: torch.device, dtype: torch.dtype = torch.float32
) -> WanTransformer3DModel:
    """One transformer in eval mode; in bfloat16 diffusers keeps norms and time embedding in float32.

    Raises ModelError, also when a weight is missing in the file.
    """

    def load() -> tuple[WanTransformer3DModel, dict[str, list[str]]]:
        return WanTransformer3DModel.from_pretrained(folder.path, torch_dtype=dtype, output_loading_info=True)

    transformer, report = _load(folder.path, load)
    _refuse_missing(folder.path, set(report["missing_keys"]))
    return transformer.to(device).eval()


def load_vae(components: Path, device: torch.device) -> AutoencoderKLWan:
    """The VAE in float32: in bfloat16 its colours drift. Raises ModelError."""
    folder = components / "vae"
    vae, report = _load(
        folder, lambda: AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32, output_loading_info=True)
    )
    _refuse_missing(folder, set(report["missing_keys"]))
    return vae.to(device).eval().requires_grad_(False)


def load_text_encoder(components: Path, device: torch.device) -> UMT5EncoderModel:
    """The text encoder in float32, so that embeddings do not depend on where they are made. Raises ModelError."""
    folder = components / "text_encoder"
    encoder, report = _load(folder, lambda: UMT5EncoderModel.from_pretrained(folder, output_loading_info=True))
    missing = set(report["missing_keys"])
    # one tensor under two names: a file holds either, and versions of transformers differ in which they miss
    _refuse_missing(folder, missing if missing >= _TIED_EMBEDDING else missing - _TIED_EMBEDDING)
    return encoder.to(device=device, dtype=torch.float32).eval().requires_grad_(False)


def load_tokenizer(components: Path) -> PreTrainedTokenizerBase:
    folder = components / "tokenizer"
    return _load(folder, lambda: AutoTokenizer.from_pretrained(folder))


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
