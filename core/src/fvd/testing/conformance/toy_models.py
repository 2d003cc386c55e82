"""The toys as models to sample: what samplers, validators and trackers are tried on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fvd.adapters import Adapter
from fvd.config.models import MethodConfig, PipelineConfig, RoleConfig, RunConfig
from fvd.data.spec import VideoGeometry
from fvd.families import Family, FamilyContext
from fvd.plugins import Plugins
from fvd.roles import RoleHandle, RoleManager
from fvd.samplers.guidance import GuidedModel
from fvd.testing.conformance.counterparts import TOY_FAMILIES, TOY_METHOD, toy_family
from fvd.testing.conformance.runs import Trial
from fvd.testing.toy.config import ToyConfig
from fvd.testing.toy.mixture import GaussianMixture, circle


@dataclass(frozen=True)
class ToyModel:
    """One role of a toy family, ready to be sampled. ``truth``: what its samples should be distributed as."""

    name: str
    adapter: Adapter
    handle: RoleHandle
    truth: GaussianMixture

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.adapter.latent_shape(VideoGeometry(num_frames=1, height=32, width=32))

    def unguided(self, batch_size: int) -> GuidedModel:
        """Of the whole mixture: the empty prompt's."""
        return GuidedModel(self.adapter, self.handle, self.adapter.encode_prompts([""] * batch_size), None)

    def truth_samples(self, count: int) -> Tensor:
        return self.truth.sample(count, torch.Generator().manual_seed(7))


def toy_model(plugins: Plugins, name: str, path: str, *, trainable: bool = False) -> ToyModel:
    """``name``: one of `TOY_FAMILIES`. ``path``: ``random`` or ``analytic``, the exact denoiser."""
    config: PipelineConfig = plugins.load_config("family", name)()
    assert isinstance(config, ToyConfig)
    context = FamilyContext(config=config, components_path="", device=torch.device("cpu"))
    family: Family = plugins.load("family", name)(context)
    handle = family.load_role("student", RoleConfig(path=path, trainable=trainable))
    adapter = family.build_adapter(RoleManager([handle]))
    adapter.on_train_start()
    adapter.ensure_negative_conditioning()
    return ToyModel(name, adapter, handle, circle(config.modes, config.radius, config.std))


def toys_with_scheduler(plugins: Plugins, kind: str, path: str = "random") -> list[ToyModel]:
    """Every toy family that has a scheduler of this kind. ``random`` roles are trained ones, as during a run."""
    with_scheduler = [name for name in TOY_FAMILIES if kind in toy_family(plugins, name).samplers]
    return [toy_model(plugins, name, path, trainable=path == "random") for name in with_scheduler]


def toy_run(plugins: Plugins, output_dir: Path) -> RunConfig:
    """A run file of the toy family and the toy method."""
    trial = Trial(
        plugins=plugins,
        family=TOY_FAMILIES[0],
        method=TOY_METHOD,
        models={"student": ("random", True)},
        pipeline_config=plugins.load_config("family", TOY_FAMILIES[0])(),
        method_config=MethodConfig(),
        training={},
    )
    return trial.config(output_dir, 4)
