"""The Wan family: how its folders become roles, an adapter, encoders, and folders again."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch import nn

import fvd
from fvd.errors import FvdError, ModelError
from fvd_wan.adapter import WanAdapter
from fvd_wan.check import NO_BOUNDARY_CURE, no_boundary_message
from fvd_wan.components import WanComponents
from fvd_wan.config import WanConfig
from fvd_wan.encoders import WanEncoders
from fvd_wan.export import export_pipeline
from fvd_wan.folders import read_model
from fvd_wan.loading import fetch_components, fetch_transformers, load_transformer


class WanFamily(fvd.Family):
    """Any Wan 2.1 text-to-video model in diffusers format, of any size, with one transformer or two."""

    def __init__(self, context: fvd.FamilyContext) -> None:
        super().__init__(context)
        if not isinstance(context.config, WanConfig):
            raise TypeError(f"the family wan needs a WanConfig, got {type(context.config).__name__}")
        self.config: WanConfig = context.config
        self._boundary_ratios: dict[str, float] = {}

    def load_role(self, name: str, spec: fvd.RoleConfig) -> fvd.RoleHandle:
        model = read_model(fetch_transformers(spec.path))
        if len(model.transformers) > 1:
            self._boundary_ratios[name] = self._boundary_of(name, model.boundary_ratio)
        # Under autocast a frozen network computes the same from half the memory; trained weights stay float32.
        dtype = torch.float32 if spec.trainable or self.context.autocast_dtype is None else self.context.autocast_dtype
        modules: dict[str, nn.Module] = {}
        for part, folder in model.transformers.items():
            modules[part] = load_transformer(folder, self.context.device, dtype)
        handle = fvd.RoleHandle(name=name, family="wan", trainable=bool(spec.trainable), modules=modules)
        handle.apply_trainable()
        return handle

    def build_adapter(self, roles: fvd.RoleManager) -> WanAdapter:
        for handle in roles:
            if handle.family == "wan":
                self._check_fits(handle)
        return WanAdapter(self.context, self._components, boundary_ratio=self._common_boundary())

    def data_spec(self) -> fvd.DataSpec:
        description = self._components.description
        return fvd.DataSpec(
            kind="parquet",
            fields=(
                fvd.FieldSpec(
                    name="vae_latent", axes=("C", "T", "H", "W"), sizes={"C": description.vae.z_dim}, source="latents"
                ),
                fvd.FieldSpec(
                    name="text_embedding", axes=("L", "D"), sizes={"D": description.text_dim}, source="text", ragged="L"
                ),
            ),
            text_padding_length=self.config.max_text_tokens,
            conditioning_dropout="empty_prompt",
        )

    def build_encoders(self) -> WanEncoders:
        return WanEncoders(self._components)

    def shard_units(self, handle: fvd.RoleHandle) -> list[nn.Module]:
        return [block for transformer in _transformers(handle).values() for block in transformer.blocks]

    def export(self, handle: fvd.RoleHandle, out_dir: Path, format: str) -> None:
        if format != "diffusers":
            raise FvdError(f"the family `wan` cannot export to {format!r}", cure="It exports to: diffusers.")
        export_pipeline(
            handle,
            out_dir,
            components=self._components.description.path,
            flow_shift=self.config.flow_shift,
            boundary_ratio=self._boundary_ratios.get(handle.name),
        )

    @cached_property
    def _components(self) -> WanComponents:
        folder = fetch_components(self.context.components_path)
        return WanComponents(folder, device=self.context.device, max_text_tokens=self.config.max_text_tokens)

    def _check_fits(self, handle: fvd.RoleHandle) -> None:
        description = self._components.description
        for part, transformer in _transformers(handle).items():
            found = (transformer.config.in_channels, transformer.config.text_dim)
            if found != (description.vae.z_dim, description.text_dim):
                raise ModelError(
                    f"role {handle.name!r}: its {part} has {found[0]} latent channels and text of width {found[1]}, but the "
                    f"VAE and text encoder in {description.path} have {description.vae.z_dim} and {description.text_dim}",
                    cure="All roles of a run share one VAE and text encoder; choose models of one kind.",
                )

    def _boundary_of(self, role: str, from_checkpoint: float | None) -> float:
        ratio = self.config.boundary_ratio if self.config.boundary_ratio is not None else from_checkpoint
        if ratio is None:
            raise ModelError(no_boundary_message(role), cure=NO_BOUNDARY_CURE)
        return ratio

    def _common_boundary(self) -> float | None:
        if len(set(self._boundary_ratios.values())) > 1:
            listing = ", ".join(f"{role} {ratio}" for role, ratio in self._boundary_ratios.items())
            raise ModelError(f"two-expert roles disagree on the boundary ratio: {listing}", cure=NO_BOUNDARY_CURE)
        return next(iter(self._boundary_ratios.values()), None)


def _transformers(handle: fvd.RoleHandle) -> dict[str, WanTransformer3DModel]:
    found = {}
    for name, module in handle.modules.items():
        assert isinstance(module, WanTransformer3DModel)
        found[name] = module
    return found
