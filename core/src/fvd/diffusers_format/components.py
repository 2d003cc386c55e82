"""VAE, text encoder and tokenizer of a model in diffusers format. Loaded on first use, and gone after `release`."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
from torch import Tensor

from fvd.components import Components
from fvd.data.spec import VideoGeometry
from fvd.diffusers_format.digest import digest_folders
from fvd.diffusers_format.loading import load_network, load_text_encoder, load_tokenizer, read_tensors
from fvd.errors import ModelError
from fvd.families import ClipPlan, FamilyContext
from fvd.model_folder import check_shared_parts, positive_integer, read_config, read_json


class DiffusersComponents(Components):
    """The shared parts of a pipeline folder.

    A subclass sets the class attributes below, ``max_text_tokens``, ``temporal_ratio``, ``spatial_ratio`` and, where one
    token is more than one latent pixel, ``patch_size``. Everything is computed in float32 without gradients, one sample at a
    time, so that a result does not depend on its neighbours in a batch.
    """

    vae_name: ClassVar[str]
    """diffusers' class by its name, ``"AutoencoderKLLTXVideo"``: importing it takes longer than all of training from prepared
    data needs before its first step, and that does without."""
    text_encoder_class: ClassVar[Any]
    """transformers' class, `T5EncoderModel`."""
    clip_plan: ClassVar[ClipPlan]
    """The clips that the model was made for, unless the folder's ``fvd.json`` says otherwise."""
    latent_channels_key: ClassVar[str] = "latent_channels"
    """Where the VAE's config.json says C."""
    text_dim_key: ClassVar[str] = "d_model"
    """Where the text encoder's config.json says D."""
    encoding_version: ClassVar[str] = "1"
    """To be raised when code changes what the same weights make: data prepared before are then prepared anew."""

    def __init__(self, folder: Path, context: FamilyContext) -> None:
        check_shared_parts(folder)
        self.folder = folder
        self.device = context.device
        self.vae_config: dict[str, Any] = read_config(folder / "vae", self.vae_name)
        self.latent_channels = positive_integer(folder / "vae", self.vae_config, self.latent_channels_key)
        self.latent_statistics = self._read_statistics()
        self.text_dim = self._read_text_dim()
        self._vae: Any = None
        self._text_encoder: Any = None
        self._tokenizer: Any = None

    def _read_text_dim(self) -> int:
        folder = self.folder / "text_encoder"
        config = read_json(folder / "config.json")
        expected = self.text_encoder_class.config_class.model_type
        if config.get("model_type") != expected:
            raise ModelError(
                f"{folder} is of type {config.get('model_type')!r}; this family uses {expected}",
                cure="Give a model of this family, in diffusers format.",
            )
        return positive_integer(folder, config, self.text_dim_key)

    # --- latents ---
    def _read_statistics(self) -> tuple[Tensor, Tensor]:
        """As diffusers' VAEs state them: ``latents_mean`` and ``latents_std`` in config.json or among the weights, else
        ``shift_factor``; and ``scaling_factor``."""
        config = self.vae_config
        mean, std = (config.get(key) for key in ("latents_mean", "latents_std"))
        if mean is None or std is None:
            stored = read_tensors(self.folder / "vae", ("latents_mean", "latents_std"))
            mean = stored.get("latents_mean", torch.full((self.latent_channels,), float(config.get("shift_factor") or 0)))
            std = stored.get("latents_std", torch.ones(self.latent_channels))
        means, stds = (torch.as_tensor(values, dtype=torch.float32) for values in (mean, std))
        if not len(means) == len(stds) == self.latent_channels or not bool((stds > 0).all()):
            raise ModelError(
                f"{self.folder / 'vae'}: latents_mean and latents_std must have {self.latent_channels} entries, and "
                "latents_std be positive",
                cure="Take the VAE from the model's own repository.",
            )
        return means.to(self.device), (stds / float(config.get("scaling_factor") or 1)).to(self.device)

    @torch.no_grad()
    def encode_video(self, video: Tensor) -> Tensor:
        vae = self.vae()
        pixels = torch.split(video.float() * 2 - 1, 1)
        return torch.cat([vae.encode(clip.to(self.device)).latent_dist.mode().cpu() for clip in pixels])

    @torch.no_grad()
    def decode_video(self, latents: Tensor) -> Tensor:
        own = torch.split(latents.to(self.device, torch.float32), 1)
        frames = torch.cat([self.decode_latents(sample).float().cpu() for sample in own])
        return (frames.clamp(-1, 1) + 1) / 2

    def decode_latents(self, latents: Tensor) -> Tensor:
        """One sample [1, C, T', H', W'] through the VAE -> [1, 3, T, H, W] in [-1, 1]."""
        pixels: Tensor = self.vae().decode(latents).sample
        return pixels

    # --- text ---
    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> list[Tensor]:
        """Each text cleaned, padded to ``max_text_tokens`` for the encoder, as diffusers' pipelines do, and cut back to what
        the network attends to."""
        embeddings = []
        for caption in captions:
            tokens = self.tokenizer()(
                [self.clean_prompt(caption)],
                padding="max_length",
                max_length=self.max_text_tokens,
                truncation=True,
                return_tensors="pt",
            )
            ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
            embeddings.append(self.encode_tokens(ids, mask).float().cpu())
        return embeddings

    def clean_prompt(self, text: str) -> str:
        """The text that is tokenized. Default: as it is."""
        return text

    def encode_tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and their mask, [1, max_text_tokens] -> embeddings [L, D] of what the network attends to.

        Default: the encoder does not see padding, and only real tokens are kept."""
        embedding: Tensor = self.text_encoder()(ids, attention_mask=mask).last_hidden_state[0]
        return embedding[: int(mask.sum())]

    # --- for `fvd data prepare` ---
    @cached_property
    def default_plan(self) -> ClipPlan:
        path = self.folder / "fvd.json"
        if not path.is_file():
            return self.clip_plan
        plan = read_json(path)
        try:
            geometry = VideoGeometry(num_frames=int(plan["num_frames"]), height=int(plan["height"]), width=int(plan["width"]))
            return ClipPlan(fps=float(plan["fps"]), geometry=geometry)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{path}: {error!r}", cure='It must read {"fps": 16, "num_frames": 81, "height": 480, "width": 832}.'
            ) from None

    @cached_property
    def digest(self) -> str:
        folders = [self.folder / name for name in ("vae", "text_encoder", "tokenizer")]
        return digest_folders(folders, self.encoding_version, self.max_text_tokens)

    # --- loading ---
    def vae(self) -> Any:
        """In float32: in bfloat16 a VAE's colours drift."""
        if self._vae is None:
            vae_class = getattr(diffusers, self.vae_name)
            self._vae = load_network(vae_class, self.folder / "vae", self.device).requires_grad_(False)
        return self._vae

    def text_encoder(self) -> Any:
        if self._text_encoder is None:
            self._text_encoder = load_text_encoder(self.text_encoder_class, self.folder / "text_encoder", self.device)
        return self._text_encoder

    def tokenizer(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.folder / "tokenizer")
        return self._tokenizer

    def release(self) -> None:
        if self._vae is None and self._text_encoder is None:
            return
        self._vae = self._text_encoder = self._tokenizer = None
        gc.collect()  # modules hold reference cycles, and with them their memory
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
