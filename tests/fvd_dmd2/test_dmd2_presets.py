"""Each preset against an independent implementation of its system: losses and every parameter's gradient.

The cross test puts one convention of another system into a system's reference, and must then see a difference: a preset that
is right by accident, or a comparison that sees nothing, fails there.
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache

import pytest
import torch
from diffusers import DDIMScheduler
from reference_systems import (
    SYSTEMS,
    Expected,
    FlowMatching,
    NoisePrediction,
    Replay,
    Setting,
    System,
    Text,
    over_each_sample,
    over_each_sample_and_a_little,
    step,
)
from small_video import (
    LATENT_SHAPE,
    NEGATIVE_PROMPT,
    SmallVideoAdapter,
    SmallVideoConditioning,
    small_raw_batch,
    small_roles,
    small_run,
)
from torch import Tensor

from fvd import RoleHandle, RoleManager
from fvd.diffusion import DiffusionAdapter, DiffusionSchedule
from fvd.losses import matching_gradient
from fvd.testing.steps import step_random
from fvd_dmd2.config import DMD2Config
from fvd_dmd2.method import DMD2Method

FLOW_SHIFT = 3.0
"""No preset's own, so that a preset that takes the wrong one shows."""
INTERVAL = 5
TOLERANCE = 1e-6
"""F - R is of size sigma where F and R are of size 1: at t = 50 rounding alone is this much; no step here has so small a t."""
VISIBLE = 1e-4
"""Whole timesteps instead of real ones change a gradient by 5e-4; every other convention by more than 1e-3."""

GENTLE_SCHEDULE = {"beta_start": 1e-4, "beta_end": 2e-3, "beta_schedule": "linear"}
SD_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class SmallNoiseAdapter(DiffusionAdapter):
    """The small networks read as noise predictions."""

    joins_conditioning = True
    prepare_batch = SmallVideoAdapter.prepare_batch
    ensure_negative_conditioning = SmallVideoAdapter.ensure_negative_conditioning
    encode_prompts = SmallVideoAdapter.encode_prompts
    zero_conditioning = SmallVideoAdapter.zero_conditioning
    join_conditioning = SmallVideoAdapter.join_conditioning

    def __init__(self, *, flow_shift: float, scheduler: DDIMScheduler) -> None:
        SmallVideoAdapter.__init__(self, flow_shift=flow_shift)
        self.schedule = DiffusionSchedule.of(scheduler)

    def predict(
        self, handle: RoleHandle, x_t: Tensor, t: Tensor, cond: SmallVideoConditioning, *, attn_kind: str = "dense"
    ) -> Tensor:
        prediction: Tensor = handle.modules["transformer"](x_t.float(), t / 1000, cond.embeddings, cond.mask)
        return prediction


def three_roles() -> RoleManager:
    return small_roles({"student": True, "teacher": False, "critic": True}, seed=7)


def reference(
    system: System, iteration: int, *, batch_size: int, scheduler: DDIMScheduler | None = None
) -> dict[str, Expected]:
    raw = small_raw_batch(batch_size, seed=3)
    negative = SmallVideoAdapter().encode_prompts([NEGATIVE_PROMPT])
    setting = Setting(
        {handle.name: handle.modules["transformer"] for handle in three_roles()},
        raw.tensors["vae_latent"],
        Text(raw.tensors["text_embedding"], raw.tensors["text_embedding_mask"]),
        Text(negative.embeddings.expand(batch_size, -1, -1), negative.mask.expand(batch_size, -1)),
        FlowMatching() if scheduler is None else NoisePrediction(scheduler.alphas_cumprod),
        FLOW_SHIFT,
    )
    draws = Replay(step_random(iteration, batch_size), LATENT_SHAPE)
    return step(system, setting, draws, student_is_due=iteration % INTERVAL == 0)


@cache
def ours(name: str, iteration: int, *, batch_size: int, scheduler: DDIMScheduler | None = None) -> dict[str, Expected]:
    """One step of the method with nothing but ``preset`` in its settings."""
    roles = three_roles()
    adapter = (
        SmallVideoAdapter(flow_shift=FLOW_SHIFT)
        if scheduler is None
        else SmallNoiseAdapter(flow_shift=FLOW_SHIFT, scheduler=scheduler)
    )
    run = small_run(roles, DMD2Config.model_validate({"preset": name}), flow_shift=FLOW_SHIFT)
    method = DMD2Method.build(run=run, roles=roles, adapter=adapter)
    method.on_train_start()
    found = {}
    raw = small_raw_batch(batch_size, seed=3)
    for loss in method.single_train_step(raw, iteration, rng=step_random(iteration, batch_size)):
        loss.value.backward()
        found[loss.role] = loss.value.detach()
    parameters = {role: list(roles[role].modules["transformer"].parameters()) for role in ("student", "critic")}
    for role in {"student", "critic"} - set(found):
        assert all(parameter.grad is None for parameter in parameters[role])
    return {role: Expected(value, [parameter.grad for parameter in parameters[role]]) for role, value in found.items()}


def relative(found: list[Tensor], wanted: list[Tensor]) -> float:
    flat_found, flat_wanted = (torch.cat([t.double().flatten() for t in tensors]) for tensors in (found, wanted))
    return float((flat_found - flat_wanted).norm() / flat_wanted.norm())


def difference(found: dict[str, Expected], wanted: dict[str, Expected]) -> float:
    """The largest relative difference of a loss or of a role's gradient; infinite where different roles are trained."""
    if set(found) != set(wanted):
        return float("inf")
    pairs = [(found[role], wanted[role]) for role in wanted]
    return max(max(relative([f.loss], [w.loss]), relative(f.grad, w.grad)) for f, w in pairs)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", SYSTEMS)
def test_preset_is_its_system(name, batch_size):
    for iteration in (4, 5, 10, 20, 25):
        found = ours(name, iteration, batch_size=batch_size)
        wanted = reference(SYSTEMS[name], iteration, batch_size=batch_size)
        assert difference(found, wanted) < TOLERANCE, iteration


# Guidance 8 and 1 / alpha = 15 at the end of Stable Diffusion's schedule make 1e-7 of rounding 2.6e-6; nothing else does.
@pytest.mark.parametrize(("schedule", "tolerance"), [(GENTLE_SCHEDULE, TOLERANCE), (SD_SCHEDULE, 5e-6)], ids=["gentle", "sd"])
def test_preset_dmd2_is_its_system_on_networks_that_predict_noise(schedule, tolerance):
    scheduler = DDIMScheduler(**schedule, clip_sample=False)
    for iteration in (4, 5, 10, 20, 25):
        found = ours("dmd2", iteration, batch_size=3, scheduler=scheduler)
        wanted = reference(SYSTEMS["dmd2"], iteration, batch_size=3, scheduler=scheduler)
        assert difference(found, wanted) < tolerance, iteration


ROUNDING_APART = {over_each_sample, over_each_sample_and_a_little}
"""They differ by 1e-6 of the normaliser: `test_guard_of_the_normalizer` tells them apart where it is small."""


def other_conventions() -> list[tuple[str, str, str]]:
    """(system, convention, another system that has it otherwise)."""
    names = [field.name for field in fields(System)]
    return [
        (mine, name, other)
        for mine in SYSTEMS
        for name in names
        for other in SYSTEMS
        if len({getattr(SYSTEMS[mine], name), getattr(SYSTEMS[other], name)} - ROUNDING_APART) > 0
        and getattr(SYSTEMS[mine], name) != getattr(SYSTEMS[other], name)
    ]


@pytest.mark.parametrize(("mine", "convention", "other"), other_conventions())
def test_another_systems_convention_shows(mine, convention, other):
    system, theirs = SYSTEMS[mine], getattr(SYSTEMS[other], convention)
    wrong = replace(system, **{convention: theirs})
    differences = [difference(ours(mine, i, batch_size=3), reference(wrong, i, batch_size=3)) for i in (4, 5, 10)]
    assert max(differences) > VISIBLE


@pytest.mark.parametrize("distance", [1.0, 1e-6])
@pytest.mark.parametrize("name", SYSTEMS)
def test_guard_of_the_normalizer(name, distance):
    """Where student and teacher nearly agree, w + 1e-6 is twice w."""
    config = DMD2Config.model_validate({"preset": name})
    generator = torch.Generator().manual_seed(0)
    x0, fake, direction = (torch.randn(3, *LATENT_SHAPE, generator=generator) * scale for scale in (1e-3, 1.0, distance))
    real = x0 - direction
    found = matching_gradient(
        x0, fake, real, over=config.normalizer, guard=config.normalizer_guard, epsilon=config.normalizer_epsilon
    ).value
    as_each = {n: relative([s.gradient(x0.double(), fake.double(), real.double())], [found]) for n, s in SYSTEMS.items()}
    assert as_each[name] < TOLERANCE
    if distance < 1e-3:
        assert all(as_each[n] > 0.1 for n in SYSTEMS if (n == "fastgen") != (name == "fastgen"))
