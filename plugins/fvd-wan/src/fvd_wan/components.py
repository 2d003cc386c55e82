"""What all roles share and training mostly does not need: VAE, text encoder, tokenizer. Loaded on first use."""

from __future__ import annotations

import gc
import html
import re
from collections.abc import Sequence
from pathlib import Path

import ftfy
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from fvd.data.spec import VideoGeometry
from fvd.errors import FvdError
from fvd_wan.folders import ComponentsFolder, read_components
from fvd_wan.loading import load_text_encoder, load_tokenizer, load_vae

PATCH = 2
"""Latent pixels, in height and in width, that make one token."""


class WanComponents:
    """The shared parts of a pipeline, as operations.

    Latents here are the VAE's own, not normalised, except where a name says so. Everything is computed in float32 without
    gradients, one sample at a time, so that a result does not depend on its neighbours in a batch.
    """

    def __init__(self, folder: Path, *, device: torch.device, max_text_tokens: int) -> None:
        self.description: ComponentsFolder = read_components(folder)
        self.device = device
        self.max_text_tokens = max_text_tokens
        vae = self.description.vae
        self._mean = torch.tensor(vae.latents_mean, dtype=torch.float32, device=device).view(1, -1, 1, 1, 1)
        self._std = torch.tensor(vae.latents_std, dtype=torch.float32, device=device).view(1, -1, 1, 1, 1)
        self._vae: AutoencoderKLWan | None = None
        self._text_encoder: UMT5EncoderModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None

    # --- latents ---
    def normalise(self, latents: Tensor) -> Tensor:
        """(z − mean) / std per channel, float32: about unit variance. [B, C, T, H, W]."""
        return (latents.float() - self._mean) / self._std

    def denormalise(self, latents: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return latents.float() * self._std + self._mean

    def latent_shape(self, geometry: VideoGeometry) -> tuple[int, int, int, int]:
        """(C, T, H, W) of the latents of a video. Raises FvdError for a size that Wan cannot make."""
        self.check_geometry(geometry)
        vae = self.description.vae
        frames = (geometry.num_frames - 1) // vae.temporal_ratio + 1
        return vae.z_dim, frames, geometry.height // vae.spatial_ratio, geometry.width // vae.spatial_ratio

    def check_geometry(self, geometry: VideoGeometry) -> None:
        """Raises FvdError, which names all that is wrong, unless height and width are multiples of 16 and frames 4k + 1."""
        vae = self.description.vae
        multiple = vae.spatial_ratio * PATCH
        wrong = [
            f"{name} {value} is not a multiple of {multiple}"
            for name, value in (("height", geometry.height), ("width", geometry.width))
            if value <= 0 or value % multiple
        ]
        if geometry.num_frames <= 0 or (geometry.num_frames - 1) % vae.temporal_ratio:
            wrong.append(f"the number of frames {geometry.num_frames} is not {vae.temporal_ratio}k + 1")
        if wrong:
            raise FvdError(
                "Wan cannot make videos of this size: " + "; ".join(wrong),
                cure=f"Height and width must be multiples of {multiple}, and frames {vae.temporal_ratio}k + 1: 1, 5, 9, …, 81.",
            )

    @torch.no_grad()
    def encode_video(self, video: Tensor) -> Tensor:
        """[B, 3, T, H, W] in [0, 1] -> the mean of the VAE's posterior [B, C, T', H', W'], float32, on the CPU."""
        vae = self.vae()
        pixels = torch.split(video.float() * 2 - 1, 1)
        return torch.cat([vae.encode(clip.to(self.device)).latent_dist.mode().cpu() for clip in pixels])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, C, T', H', W'] -> video [B, 3, T, H, W] in [0, 1], float32, on the CPU."""
        vae = self.vae()
        own = torch.split(self.denormalise(latents.to(self.device)), 1)
        frames = torch.cat([vae.decode(sample).sample.float().cpu() for sample in own])
        return (frames.clamp(-1, 1) + 1) / 2

    # --- text ---
    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> list[Tensor]:
        """One [L, D] float32 embedding a prompt, on the device; L is its number of tokens, at most ``max_text_tokens``.

        As diffusers' WanPipeline: cleaned, padded to the full length for the encoder, and cut back to the true length.
        """
        return [self._encode_prompt(clean_prompt(prompt)) for prompt in prompts]

    def _encode_prompt(self, prompt: str) -> Tensor:
        encoder, tokenizer = self.text_encoder(), self.tokenizer()
        tokens = tokenizer(
            [prompt], padding="max_length", max_length=self.max_text_tokens, truncation=True, return_tensors="pt"
        )
        mask = tokens.attention_mask.to(self.device)
        embedding = encoder(tokens.input_ids.to(self.device), mask).last_hidden_state[0]
        return embedding[: int(mask.sum())].float()

    def pad_text(self, embeddings: Sequence[Tensor]) -> Tensor:
        """[L, D] each -> [B, max_text_tokens, D], zeros behind the true length."""
        padded = torch.zeros(len(embeddings), self.max_text_tokens, self.description.text_dim, device=self.device)
        for row, embedding in zip(padded, embeddings, strict=True):
            row[: len(embedding)] = embedding
        return padded

    # --- loading ---
    def vae(self) -> AutoencoderKLWan:
        if self._vae is None:
            self._vae = load_vae(self.description.path, self.device)
        return self._vae

    def text_encoder(self) -> UMT5EncoderModel:
        if self._text_encoder is None:
            self._text_encoder = load_text_encoder(self.description.path, self.device)
        return self._text_encoder

    def tokenizer(self) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.description.path)
        return self._tokenizer

    def release(self) -> None:
        """Free VAE, text encoder and tokenizer; the next use loads them again."""
        if self._vae is None and self._text_encoder is None:
            return
        self._vae = self._text_encoder = self._tokenizer = None
        gc.collect()  # modules hold reference cycles, and with them their memory
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def clean_prompt(text: str) -> str:
    """Mended encoding errors, no HTML entities, single spaces: what Wan's text encoder was fed in training."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()
