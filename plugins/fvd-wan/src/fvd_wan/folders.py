"""What the JSON files of a Wan model folder say. Standard library only, so that `fvd check` can ask.

A model in diffusers format is a folder with ``model_index.json`` and one subfolder a component (``transformer``, ``vae``,
``text_encoder``, ``tokenizer``, ``scheduler``). A folder that is itself a transformer (``config.json`` and weights) serves as
a role too; VAE and text encoder then come from ``pipeline_config.components_path``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvd.errors import ModelError

TRANSFORMER_NAMES = ("transformer", "transformer_2")
SHARED_COMPONENTS = ("vae", "text_encoder", "tokenizer", "scheduler")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DIFFUSERS_CURE = (
    "Give a folder in diffusers format (its hub ids end in -Diffusers, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers); "
    "`fvd wan tiny OUT` makes a tiny one."
)


@dataclass(frozen=True)
class TransformerFolder:
    """One transformer: where it lies, and the sizes that must fit the other parts."""

    path: Path
    in_channels: int
    out_channels: int
    text_dim: int


@dataclass(frozen=True)
class ModelFolder:
    """The transformers of a role, ``transformer`` and where there is one ``transformer_2``, and the boundary between them."""

    path: Path
    transformers: dict[str, TransformerFolder]
    boundary_ratio: float | None


@dataclass(frozen=True)
class VaeFolder:
    """The VAE: latent channels, their mean and standard deviation, and how many pixels and frames make one latent."""

    path: Path
    z_dim: int
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    temporal_ratio: int
    spatial_ratio: int


@dataclass(frozen=True)
class ComponentsFolder:
    """The parts that all roles share."""

    path: Path
    vae: VaeFolder
    text_dim: int


def local_folder(location: str) -> Path | None:
    """The folder that ``location`` names on this machine; None when it can only be a hub id.

    Raises ModelError for a path that is not there, or is a file.
    """
    path = Path(location).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{location} is a file, not a model folder", cure=_DIFFUSERS_CURE)
    if _HUB_ID.fullmatch(location) and not Path(location.split("/")[0]).exists():
        return None
    raise ModelError(
        f"model folder {location} does not exist", cure="Correct the path; it is relative to where fvd was started."
    )


def read_model(folder: Path) -> ModelFolder:
    """The transformers in ``folder``. Raises ModelError when it is not a Wan text-to-video model in diffusers format."""
    if (folder / "model_index.json").is_file():
        return _read_pipeline(folder)
    if (folder / "config.json").is_file():
        return ModelFolder(folder, {"transformer": _read_transformer(folder)}, None)
    if (folder / "transformer" / "config.json").is_file():
        return ModelFolder(folder, {"transformer": _read_transformer(folder / "transformer")}, None)
    raise ModelError(f"{folder} is not a model in diffusers format: it has no model_index.json", cure=_DIFFUSERS_CURE)


def read_components(folder: Path) -> ComponentsFolder:
    """VAE and text encoder as their configurations describe them; reads no weights. Raises ModelError."""
    missing = [name for name in ("vae", "text_encoder", "tokenizer") if not (folder / name).is_dir()]
    if missing:
        raise ModelError(
            f"{folder} has no {', no '.join(missing)}",
            cure="Set `pipeline_config.components_path` to a whole Wan pipeline: a folder in diffusers format or a hub id.",
        )
    text_encoder = read_json(folder / "text_encoder" / "config.json")
    if text_encoder.get("model_type") != "umt5":
        found = text_encoder.get("model_type")
        raise ModelError(f"{folder / 'text_encoder'} is of type {found!r}; Wan uses umt5", cure=_DIFFUSERS_CURE)
    return ComponentsFolder(folder, _read_vae(folder / "vae"), _integer(folder / "text_encoder", text_encoder, "d_model", 512))


def read_pipeline_index(folder: Path) -> dict[str, Any]:
    """``model_index.json`` of a Wan text-to-video pipeline. Raises ModelError for another pipeline."""
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind == "WanImageToVideoPipeline":
        _refuse_image_to_video(folder)
    if kind != "WanPipeline":
        raise ModelError(f"{folder} is a {kind}, not a WanPipeline", cure=_DIFFUSERS_CURE)
    if index.get("expand_timesteps"):
        raise ModelError(
            f"{folder} is a Wan 2.2 TI2V model, with one timestep a token and another VAE; this family makes "
            "text-to-video with Wan 2.1's latents",
            cure=_DIFFUSERS_CURE,
        )
    return index


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError for a file that is missing, unreadable or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing", cure="The model folder is not complete; copy or download it again.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", cure="The file is damaged; copy or download it again.") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object", cure="The file is damaged; copy or download it again.")
    return content


def _read_pipeline(folder: Path) -> ModelFolder:
    index = read_pipeline_index(folder)
    present = [name for name in TRANSFORMER_NAMES if (index.get(name) or [None])[0]]
    if "transformer" not in present:
        raise ModelError(f"{folder / 'model_index.json'} names no transformer", cure=_DIFFUSERS_CURE)
    transformers = {name: _read_transformer(folder / name) for name in present}
    return ModelFolder(folder, transformers, index.get("boundary_ratio") if len(present) > 1 else None)


def _read_transformer(folder: Path) -> TransformerFolder:
    config = read_json(folder / "config.json")
    kind = config.get("_class_name")
    if kind == "WanModel":
        raise ModelError(f"{folder} is in Wan's own format, not in diffusers format", cure=_DIFFUSERS_CURE)
    if kind != "WanTransformer3DModel":
        raise ModelError(f"{folder} is not a Wan transformer: _class_name is {kind!r}", cure=_DIFFUSERS_CURE)
    in_channels = _integer(folder, config, "in_channels", 16)
    out_channels = _integer(folder, config, "out_channels", in_channels)
    if config.get("image_dim") is not None or in_channels > out_channels:
        _refuse_image_to_video(folder)
    text_dim = _integer(folder, config, "text_dim", 4096)
    return TransformerFolder(folder, in_channels, out_channels, text_dim)


def _read_vae(folder: Path) -> VaeFolder:
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "AutoencoderKLWan":
        raise ModelError(f"{folder} is not a Wan VAE: _class_name is {config.get('_class_name')!r}", cure=_DIFFUSERS_CURE)
    z_dim = _integer(folder, config, "z_dim", 16)
    mean, std = (tuple(float(value) for value in config.get(key, [])) for key in ("latents_mean", "latents_std"))
    if not len(mean) == len(std) == z_dim or min(std) <= 0:
        raise ModelError(
            f"{folder / 'config.json'}: latents_mean and latents_std must have {z_dim} entries, and latents_std be positive",
            cure="Take the VAE's config.json from the model's own repository.",
        )
    temporal = _integer(folder, config, "scale_factor_temporal", 4)
    return VaeFolder(folder, z_dim, mean, std, temporal, _integer(folder, config, "scale_factor_spatial", 8))


def _integer(folder: Path, config: dict[str, Any], key: str, default: int) -> int:
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ModelError(f"{folder / 'config.json'}: {key} must be a positive integer, not {value!r}", cure=_DIFFUSERS_CURE)
    return value


def _refuse_image_to_video(folder: Path) -> None:
    raise ModelError(
        f"{folder} is an image-to-video model; the family `wan` makes text-to-video",
        cure="Use a T2V checkpoint, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers.",
    )
