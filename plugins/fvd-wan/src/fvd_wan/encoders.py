"""What `fvd data prepare` needs of Wan: pixels to latents, captions to embeddings, and what identifies both."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

import fvd
from fvd.errors import ModelError
from fvd.families import ClipPlan
from fvd_wan.components import WanComponents
from fvd_wan.folders import read_json

WAN_PLAN = ClipPlan(fps=16.0, geometry=fvd.VideoGeometry(num_frames=81, height=480, width=832))

_ENCODING_VERSION = "fvd-wan encodings 1"  # raise it when the code above the weights changes what they make
_WHOLE_FILE_LIMIT = 64 * 2**20
_SAMPLES, _SAMPLE_SIZE = 64, 64 * 2**10


class WanEncoders(fvd.Encoders):
    """The VAE and the text encoder of one model folder."""

    def __init__(self, components: WanComponents) -> None:
        self.components = components
        self._digest: str | None = None

    @property
    def default_plan(self) -> ClipPlan:
        """Wan 2.1's own clips, 81 frames of 832 × 480 at 16 a second; a folder's ``fvd.json`` may say otherwise."""
        path = self.components.description.path / "fvd.json"
        if not path.is_file():
            return WAN_PLAN
        plan = read_json(path)
        try:
            geometry = fvd.VideoGeometry(
                num_frames=int(plan["num_frames"]), height=int(plan["height"]), width=int(plan["width"])
            )
            return ClipPlan(fps=float(plan["fps"]), geometry=geometry)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{path}: {error!r}", cure='It must read {"fps": 16, "num_frames": 81, "height": 480, "width": 832}.'
            ) from None

    @property
    def digest(self) -> str:
        """Configurations, weights and tokenizer, with the number of text tokens. Files above 64 MiB count by their
        first bytes (a safetensors header), size, and samples from all over: reading 22 GB would take longer than encoding
        a small data set."""
        if self._digest is None:
            folder = self.components.description.path
            self._digest = _digest(
                [folder / name for name in ("vae", "text_encoder", "tokenizer")], self.components.max_text_tokens
            )
        return self._digest

    def check_geometry(self, geometry: fvd.VideoGeometry) -> None:
        self.components.check_geometry(geometry)

    def encode_video(self, video: Tensor) -> Tensor:
        return self.components.encode_video(video)

    def encode_text(self, captions: Sequence[str]) -> list[Tensor]:
        return [embedding.cpu() for embedding in self.components.encode_text(captions)]


def _digest(folders: Sequence[Path], max_text_tokens: int) -> str:
    digest = hashlib.blake2b(f"{_ENCODING_VERSION}\n{max_text_tokens}\n".encode(), digest_size=16)
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.suffix in (".json", ".safetensors", ".model"):
                digest.update(f"{folder.name}/{path.name} {path.stat().st_size}\n".encode())
                _add_content(digest, path)
    return digest.hexdigest()


def _add_content(digest: hashlib.blake2b, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE_FILE_LIMIT:
            digest.update(file.read())
            return
        for sample in range(_SAMPLES):
            file.seek((size - _SAMPLE_SIZE) * sample // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_SIZE))
