"""The toy families end to end without a run file: the exact teacher samples the mixture, and a network learns to."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

import fvd
from fvd.samplers.guidance import GuidedModel
from fvd.samplers.ode import sample_ode
from fvd.samplers.sde import sample_sde
from fvd.testing.steps import train_step
from fvd.testing.toy.config import ToyConfig
from fvd.testing.toy.family import MixtureFamily
from fvd.testing.toy.method import ToyMethod
from fvd.testing.toy.mixture import energy_distance
from fvd.testing.toy.workbench import toy_batch, toy_family, toy_method, toy_samples

BOTH = pytest.mark.parametrize("predicts", ["velocity", "noise"])


def analytic(family: MixtureFamily) -> tuple[fvd.Adapter, fvd.RoleHandle]:
    teacher = family.load_role("teacher", fvd.RoleConfig(path="analytic", trainable=False))
    return family.build_adapter(fvd.RoleManager([teacher])), teacher


def truth(family: MixtureFamily, count: int = 1500) -> torch.Tensor:
    return family.mixture.sample(count, torch.Generator().manual_seed(99))


@BOTH
def test_the_teacher_samples_the_mixture(predicts):
    family = toy_family(predicts)
    adapter, teacher = analytic(family)
    noise = torch.randn(1500, 2, generator=torch.Generator().manual_seed(0))
    assert energy_distance(noise, truth(family)) > 0.2
    assert abs(energy_distance(toy_samples(adapter, teacher, 1500, steps=40), truth(family))) < 0.006


@BOTH
def test_a_caption_chooses_the_modes(predicts):
    family = toy_family(predicts)
    adapter, teacher = analytic(family)
    points = toy_samples(adapter, teacher, 300, prompt="mode 1 mode 4", steps=40).double()
    distance = torch.cdist(points, family.mixture.means)
    assert set(distance.argmin(dim=1).tolist()) == {1, 4}
    assert distance.min(dim=1).values.max() < 5 * 0.15


@pytest.mark.parametrize("flow_shift", [1.0, 3.0])
@BOTH
def test_the_solver_is_of_first_order(predicts, flow_shift):
    """Where the modes are wide, twice as many steps make half the error."""
    family = toy_family(predicts, config=ToyConfig(std=0.8, flow_shift=flow_shift))
    adapter, teacher = analytic(family)
    exact = toy_samples(adapter, teacher, 200, steps=900)
    errors = [float((toy_samples(adapter, teacher, 200, steps=steps) - exact).norm(dim=1).mean()) for steps in (20, 40, 80)]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(0.8 < order < 1.35 for order in orders), orders


@BOTH
def test_guidance_moves_away_from_the_unconditional(predicts):
    """At scale s the prediction is u + s (c - u): for x0 at pure noise, the point that lies s times as far out."""
    family = toy_family(predicts)
    adapter, teacher = analytic(family)
    adapter.ensure_negative_conditioning()
    x_t, t = torch.zeros(1, 2, 1, 1, 1), torch.full((1,), float(adapter.num_train_timesteps))
    cond, uncond = adapter.encode_prompts(["mode 0"]), adapter.negative_conditioning(1)
    for scale in (1.0, 2.5):
        x0 = GuidedModel(adapter, teacher, cond, uncond, scale).predict_x0(x_t, t).flatten()
        torch.testing.assert_close(x0, torch.tensor([2.0 * scale, 0.0]), atol=2e-3, rtol=1e-3)


def test_renoising_a_mean_loses_variance():
    """What the sampler ``sde`` warns of: on a teacher, whose x0 is a mean, few steps fall between the modes."""
    family = toy_family()
    adapter, teacher = analytic(family)
    generators = [torch.Generator().manual_seed(seed) for seed in range(800)]
    noise = torch.stack([torch.randn(2, 1, 1, 1, generator=generator) for generator in generators])
    model = GuidedModel(adapter, teacher, adapter.encode_prompts([""] * 800), None)
    timesteps = torch.tensor([1000.0, 500.0])
    renoised = sample_sde(model, noise, scheduler=None, timesteps=timesteps, generators=generators).flatten(1)
    scheduler = adapter.scheduler("ode")
    scheduler.set_timesteps(40)
    solved = sample_ode(model, noise, scheduler=scheduler, timesteps=scheduler.timesteps, generators=generators).flatten(1)
    assert energy_distance(renoised, truth(family)) > 20 * abs(energy_distance(solved, truth(family)))


@BOTH
def test_a_network_learns_the_mixture(predicts):
    family = toy_family(predicts)
    training = {"learning_rate": 5e-3, "lr_scheduler": "cosine", "max_train_steps": 300}
    method = toy_method(ToyMethod, fvd.MethodConfig(), {"student": True}, family=family, training=training)

    def distance() -> float:
        return energy_distance(toy_samples(method.adapter, method.roles["student"], 1500), truth(family))

    before = distance()
    for iteration in range(1, 301):
        train_step(method, toy_batch(family, 128, first=128 * iteration), iteration)
    assert distance() < before / 3


@BOTH
def test_the_teacher_has_the_least_loss(predicts):
    """No other prediction has a lower mean squared error, and a network that learns comes nearer to it."""
    family = toy_family(predicts)
    training = {"learning_rate": 5e-3, "max_train_steps": 150}
    method = toy_method(ToyMethod, fvd.MethodConfig(), {"student": True}, family=family, training=training)
    adapter, teacher = analytic(family)
    batch = adapter.prepare_batch(toy_batch(family, 2048, first=4096), latents_source="data")
    t = adapter.num_train_timesteps * torch.rand(2048, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(4))

    @torch.no_grad()
    def loss(role: fvd.RoleHandle) -> float:
        prediction = adapter.predict(role, adapter.add_noise(batch.latents, noise, t), t, batch.cond)
        return float((prediction - adapter.training_target(batch.latents, noise, t)).square().mean())

    least, untrained = loss(teacher), loss(method.roles["student"])
    for iteration in range(1, 151):
        train_step(method, toy_batch(family, 128, first=128 * iteration), iteration)
    assert least < loss(method.roles["student"]) < least + 0.5 * (untrained - least)
