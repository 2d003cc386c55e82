"""The Wan family: what its folders are, and which expert serves which timesteps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import WanTransformer3DModel

import fvd
from fvd.diffusers_format import DiffusersFamily
from fvd_wan.adapter import WanAdapter
from fvd_wan.check import NO_BOUNDARY_CURE, no_boundary_message
from fvd_wan.components import WanComponents
from fvd_wan.config import WanConfig
from fvd_wan.folders import PIPELINE, TRANSFORMER_NAMES, read_model


class WanFamily(DiffusersFamily):
    """Any Wan 2.1 text-to-video model in diffusers format, of any size, with one transformer or two."""

    name = "wan"
    adapter_class = WanAdapter
    components_class = WanComponents
    pipeline_names = (PIPELINE,)
    transformer_class = WanTransformer3DModel
    transformer_names = TRANSFORMER_NAMES
    text_dim_key = "text_dim"
    blocks_name = WanAdapter.blocks_name

    def __init__(self, context: fvd.FamilyContext) -> None:
        super().__init__(context)
        if not isinstance(context.config, WanConfig):
            raise TypeError(f"the family wan needs a WanConfig, got {type(context.config).__name__}")
        self.config: WanConfig = context.config
        self._boundary_ratios: dict[str, float] = {}

    def load_role(self, name: str, spec: fvd.RoleConfig) -> fvd.RoleHandle:
        model = read_model(self.fetch_role(spec.path))
        if len(model.transformers) > 1:
            self._boundary_ratios[name] = self._boundary_of(name, model.boundary_ratio)
        return super().load_role(name, spec)

    def find_transformers(self, folder: Path) -> dict[str, Path]:
        return {name: transformer.path for name, transformer in read_model(folder).transformers.items()}

    def build_adapter(self, roles: fvd.RoleManager) -> fvd.TextToVideo:
        adapter = super().build_adapter(roles)
        assert isinstance(adapter, WanAdapter)
        adapter.boundary_ratio = self._common_boundary()
        return adapter

    def exported_index(self, handle: fvd.RoleHandle, index: dict[str, Any]) -> dict[str, Any]:
        return {**index, "boundary_ratio": self._boundary_ratios.get(handle.name)}

    def _boundary_of(self, role: str, from_checkpoint: float | None) -> float:
        ratio = self.config.boundary_ratio if self.config.boundary_ratio is not None else from_checkpoint
        if ratio is None:
            raise fvd.ModelError(no_boundary_message(role), cure=NO_BOUNDARY_CURE)
        return ratio

    def _common_boundary(self) -> float | None:
        if len(set(self._boundary_ratios.values())) > 1:
            listing = ", ".join(f"{role} {ratio}" for role, ratio in self._boundary_ratios.items())
            raise fvd.ModelError(f"two-expert roles disagree on the boundary ratio: {listing}", cure=NO_BOUNDARY_CURE)
        return next(iter(self._boundary_ratios.values()), None)
