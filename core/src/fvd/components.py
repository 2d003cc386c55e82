"""What all roles of a text-to-video run share, as operations: the VAE, the text encoder, and the sizes that they fix."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fvd.data.spec import VideoGeometry
from fvd.errors import FvdError
from fvd.families import Encoders


@dataclass(frozen=True)
class TextConditioning:
    """Text of a batch, on the run's device.

    embeddings: [B, L, D], float32, with zeros behind each text's last token.
    mask: [B, L], float32: 1 where there is a token, 0 behind the last.
    """

    embeddings: Tensor
    mask: Tensor

    def expanded(self, batch_size: int) -> TextConditioning:
        """One text for ``batch_size`` samples."""
        return TextConditioning(self.embeddings.expand(batch_size, -1, -1), self.mask.expand(batch_size, -1))


class Components(Encoders):
    """The shared parts of a text-to-video model. One object serves training, sampling and `fvd data prepare`.

    A subclass sets the sizes below, as attributes of the class or of the object, and writes `encode_video`,
    `decode_video`, `encode_text`, `default_plan` and `digest`.

    Latents here are the VAE's own, not normalised, except where a name says so.
    """

    device: torch.device
    latent_channels: int
    """C of the latents."""
    text_dim: int
    """D of the text embeddings."""
    max_text_tokens: int
    """L of the text embeddings: texts are cut or padded to so many tokens."""
    temporal_ratio: int
    """Frames of a video that make one latent frame; the first frame makes one of its own."""
    spatial_ratio: int
    """Pixels of a video, in height and in width, that make one latent pixel."""
    patch_size: int = 1
    """Latent pixels, in height and in width, that make one token of the network."""

    @abstractmethod
    def decode_video(self, latents: Tensor) -> Tensor:
        """The inverse of `encode_video`: [B, C, T', H', W'] -> [B, 3, T, H, W] in [0, 1], float32, on the CPU."""

    def release(self) -> None:
        """Free what training does not need; the next use loads it again."""

    # --- latents ---
    @cached_property
    def latent_statistics(self) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation) of latents, [C] each, float32, on the device. Default: 0 and 1."""
        return torch.zeros(self.latent_channels, device=self.device), torch.ones(self.latent_channels, device=self.device)

    def normalise(self, latents: Tensor) -> Tensor:
        """(z − mean) / std per channel, float32: about unit variance. [B, C, T, H, W]."""
        mean, std = (value.view(1, -1, 1, 1, 1) for value in self.latent_statistics)
        return (latents.float() - mean) / std

    def denormalise(self, latents: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        mean, std = (value.view(1, -1, 1, 1, 1) for value in self.latent_statistics)
        return latents.float() * std + mean

    def latent_shape(self, geometry: VideoGeometry) -> tuple[int, int, int, int]:
        """(C, T, H, W) of the latents of a video. Raises FvdError for a size that the model cannot make."""
        self.check_geometry(geometry)
        frames = (geometry.num_frames - 1) // self.temporal_ratio + 1
        return self.latent_channels, frames, geometry.height // self.spatial_ratio, geometry.width // self.spatial_ratio

    def check_geometry(self, geometry: VideoGeometry) -> None:
        """Raises FvdError, which names all that is wrong, unless whole tokens make the video and k groups of frames, and one
        more frame."""
        multiple, group = self.spatial_ratio * self.patch_size, self.temporal_ratio
        wrong = [
            f"{name} {value} is not a multiple of {multiple}"
            for name, value in (("height", geometry.height), ("width", geometry.width))
            if value <= 0 or value % multiple
        ]
        if geometry.num_frames <= 0 or (geometry.num_frames - 1) % group:
            wrong.append(f"the number of frames {geometry.num_frames} is not {group}k + 1")
        if wrong:
            raise FvdError(
                "this model cannot make videos of this size: " + "; ".join(wrong),
                cure=f"Height and width must be multiples of {multiple}, and frames {group}k + 1: 1, {group + 1}, "
                f"{2 * group + 1}, …",
            )

    # --- text ---
    def encode_prompts(self, prompts: Sequence[str]) -> TextConditioning:
        """`encode_text`, padded with zeros to ``max_text_tokens``, on the device."""
        embeddings = torch.zeros(len(prompts), self.max_text_tokens, self.text_dim)
        mask = torch.zeros(len(prompts), self.max_text_tokens)
        for row, embedding in enumerate(self.encode_text(prompts)):
            embeddings[row, : len(embedding)] = embedding
            mask[row, : len(embedding)] = 1
        return TextConditioning(embeddings.to(self.device), mask.to(self.device))
