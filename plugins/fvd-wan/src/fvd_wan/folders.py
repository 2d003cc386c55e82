"""What the JSON files of a Wan model folder say. Standard library and `fvd` only, so that `fvd check` can ask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fvd.errors import ModelError
from fvd.model_folder import (
    check_shared_parts,
    find_transformers,
    positive_integer,
    read_config,
    read_json,
    read_pipeline_index,
)

PIPELINE = "WanPipeline"
TRANSFORMER_NAMES = ("transformer", "transformer_2")

_DIFFUSERS_CURE = (
    "Give a folder in diffusers format (its hub ids end in -Diffusers, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers); "
    "`fvd wan tiny OUT` makes a tiny one."
)


@dataclass(frozen=True)
class TransformerFolder:
    """One transformer: where it lies, and the sizes that must fit the other parts."""

    path: Path
    in_channels: int
    text_dim: int


@dataclass(frozen=True)
class ModelFolder:
    """The transformers of a role, ``transformer`` and where there is one ``transformer_2``, and the boundary between them."""

    path: Path
    transformers: dict[str, TransformerFolder]
    boundary_ratio: float | None


@dataclass(frozen=True)
class ComponentsFolder:
    """The sizes that all roles share."""

    path: Path
    latent_channels: int
    text_dim: int


def read_model(folder: Path) -> ModelFolder:
    """The transformers in ``folder``. Raises ModelError when it is not a Wan text-to-video model in diffusers format."""
    boundary_ratio = _read_boundary(folder) if (folder / "model_index.json").is_file() else None
    found = find_transformers(folder, TRANSFORMER_NAMES)
    transformers = {name: _read_transformer(path) for name, path in found.items()}
    return ModelFolder(folder, transformers, boundary_ratio if len(transformers) > 1 else None)


def read_components(folder: Path) -> ComponentsFolder:
    """VAE and text encoder as their configurations describe them; reads no weights. Raises ModelError."""
    check_shared_parts(folder)
    vae, text_encoder = folder / "vae", folder / "text_encoder"
    latent_channels = positive_integer(vae, read_config(vae, "AutoencoderKLWan"), "z_dim")
    return ComponentsFolder(
        folder, latent_channels, positive_integer(text_encoder, read_json(text_encoder / "config.json"), "d_model")
    )


def _read_boundary(folder: Path) -> float | None:
    kind = read_json(folder / "model_index.json").get("_class_name")
    if kind == "WanImageToVideoPipeline":
        _refuse_image_to_video(folder)
    index = read_pipeline_index(folder, (PIPELINE,))
    if index.get("expand_timesteps"):
        raise ModelError(
            f"{folder} is a Wan 2.2 TI2V model, with one timestep a token and another VAE; this family makes "
            "text-to-video with Wan 2.1's latents",
            cure=_DIFFUSERS_CURE,
        )
    ratio: float | None = index.get("boundary_ratio")
    return ratio


def _read_transformer(folder: Path) -> TransformerFolder:
    if read_json(folder / "config.json").get("_class_name") == "WanModel":
        raise ModelError(f"{folder} is in Wan's own format, not in diffusers format", cure=_DIFFUSERS_CURE)
    config = read_config(folder, "WanTransformer3DModel")
    in_channels = positive_integer(folder, config, "in_channels", 16)
    out_channels = positive_integer(folder, config, "out_channels", in_channels)
    if config.get("image_dim") is not None or in_channels > out_channels:
        _refuse_image_to_video(folder)
    return TransformerFolder(folder, in_channels, positive_integer(folder, config, "text_dim", 4096))


def _refuse_image_to_video(folder: Path) -> None:
    raise ModelError(
        f"{folder} is an image-to-video model; the family `wan` makes text-to-video",
        cure="Use a T2V checkpoint, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers.",
    )
