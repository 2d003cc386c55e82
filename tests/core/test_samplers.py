"""Denoising loops, by mathematics: on a Gaussian the exact velocity is known in closed form."""

from __future__ import annotations

import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler

import fvd
import fvd.diffusion
from fvd import flow
from fvd.errors import FvdError, PluginError
from fvd.plugins import load_plugins
from fvd.samplers.ddim import sample_ddim
from fvd.samplers.guidance import GuidedModel
from fvd.samplers.ode import sample_ode
from fvd.samplers.sampling import LoadedSampler, check_plan, sample_latents
from fvd.samplers.sde import sample_sde

MEAN, STD = 2.0, 0.3


class GaussianModel:
    """Data ~ N(MEAN, STD²): the posterior mean of x0 given x_t, and the velocity that follows from it."""

    adapter = SimpleNamespace(device=torch.device("cpu"))

    def predict_x0(self, x_t, t):
        sigma = flow.expand_to(t / 1000, x_t)
        variance = (1 - sigma) ** 2 * STD**2 + sigma**2
        return MEAN + (1 - sigma) * STD**2 / variance * (x_t - (1 - sigma) * MEAN)

    def predict(self, x_t, t):
        sigma = flow.expand_to(t / 1000, x_t)
        return (x_t - self.predict_x0(x_t, t)) / sigma

    def add_noise(self, x0, noise, t):
        return flow.add_noise(x0, noise, t / 1000)


class EulerScheduler:
    """First order in σ, on a uniform grid."""

    def set_timesteps(self, steps, device=None):
        self.sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        self.timesteps = self.sigmas[:-1] * 1000

    def set_begin_index(self, index):
        assert index == 0

    def step(self, prediction, t, latents, return_dict=False):
        index = int((self.timesteps == t).nonzero())
        return (latents + (self.sigmas[index + 1] - self.sigmas[index]) * prediction,)


def ode(steps: int, noise: torch.Tensor) -> torch.Tensor:
    scheduler = EulerScheduler()
    scheduler.set_timesteps(steps)
    return sample_ode(GaussianModel(), noise, scheduler=scheduler, timesteps=scheduler.timesteps, generators=[])


def test_ode_converges_at_first_order_to_the_exact_map():
    """The exact flow of a Gaussian is affine: noise z arrives at MEAN + STD z."""
    noise = torch.randn(4, 1, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = MEAN + STD * noise
    errors = [float((ode(steps, noise) - exact).abs().max()) for steps in (64, 128, 256, 512)]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert errors[-1] < 0.01
    assert all(0.85 < order < 1.15 for order in orders), orders


def test_sde_is_renoising_and_shrinks_the_variance_of_a_mean_predictor():
    """With a posterior-mean denoiser the limit is STD / √2, which is why validation warns about it."""
    count, steps = 4000, 200
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    noise = torch.stack([torch.randn(1, 1, 1, 1, generator=generator) for generator in generators])
    timesteps = torch.linspace(1000, 1000 / steps, steps)
    samples = sample_sde(GaussianModel(), noise, scheduler=None, timesteps=timesteps, generators=generators)
    assert float(samples.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(samples.std()) == pytest.approx(STD / math.sqrt(2), rel=0.06)


def test_sde_of_one_step_is_predict_x0():
    noise = torch.randn(2, 1, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    samples = sample_sde(GaussianModel(), noise, scheduler=None, timesteps=torch.tensor([1000.0]), generators=[])
    torch.testing.assert_close(samples, GaussianModel().predict_x0(noise, torch.full((2,), 1000.0)))


# --- ddim ------------------------------------------------------------------------------------------------------------
def ddim(model, noise, timesteps):
    return sample_ddim(model, noise, scheduler=None, timesteps=torch.tensor(timesteps), generators=[])


@pytest.mark.parametrize("timesteps", [[1000.0], [1000.0, 750.0, 500.0, 250.0], [1000.0, 937.5, 833.3, 625.0]])
def test_ddim_is_eulers_method_in_sigma_for_flow_matching(timesteps):
    """x' = x + (σ' − σ) velocity, down to σ = 0, on any ladder; float64."""
    model, x_t = GaussianModel(), torch.randn(3, 1, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    sampled = ddim(model, x_t, timesteps)
    for t, after in itertools.pairwise([*timesteps, 0.0]):
        velocity = model.predict(x_t.double(), torch.full((3,), t, dtype=torch.float64))
        x_t = x_t.double() + (after - t) / 1000 * velocity
    torch.testing.assert_close(sampled.double(), x_t, atol=2e-6, rtol=1e-5)


def test_ddim_converges_at_first_order_to_the_exact_map():
    noise = torch.randn(4, 1, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    exact = MEAN + STD * noise
    ladders = {steps: [1000 * (1 - step / steps) for step in range(steps)] for steps in (16, 32, 64, 128)}
    errors = [float((ddim(GaussianModel(), noise, ladder) - exact).abs().max()) for ladder in ladders.values()]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(0.8 < order < 1.2 for order in orders), orders


class NoiseAdapter(fvd.diffusion.DiffusionAdapter):
    """Predicts noise, by some function that is no model: the loop is to be compared, not what it samples."""

    device = torch.device("cpu")

    def __init__(self, table):
        self.schedule = fvd.diffusion.DiffusionSchedule(table, "noise")

    def prepare_batch(self, raw_batch, *, latents_source):
        raise AssertionError("there are no batches")

    def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
        return torch.tanh(cond * x_t + flow.expand_to(t, x_t) / 1000)


def test_ddim_is_diffusers_ddim_on_a_diffusion_schedule():
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(7)
    model = GuidedModel(NoiseAdapter(scheduler.alphas_cumprod), fvd.RoleHandle("r", "f", False, {}), cond=0.7, uncond=None)
    noise = torch.randn(2, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    sampled, expected = ddim(model, noise, scheduler.timesteps.float().tolist()), noise
    for t in scheduler.timesteps:
        prediction = model.predict(expected, t.float().expand(2))
        expected = scheduler.step(prediction, t, expected).prev_sample
    torch.testing.assert_close(sampled, expected, atol=1e-4, rtol=1e-4)


def test_ddim_makes_one_forward_a_step():
    adapter = NoiseAdapter(DDIMScheduler().alphas_cumprod)
    calls = []
    predict = adapter.predict
    adapter.predict = lambda *given, **named: calls.append(given[2]) or predict(*given, **named)
    model = GuidedModel(adapter, fvd.RoleHandle("r", "f", False, {}), cond=0.7, uncond=None)
    ddim(model, torch.zeros(1, 1, 1, 1, 1), [999.0, 500.0, 250.0])
    assert [float(t) for t in calls] == [999.0, 500.0, 250.0]


class LinearAdapter:
    """predict = cond * x_t, so that guidance can be computed by hand; counts its calls."""

    device = torch.device("cpu")
    attn_kinds = frozenset({"dense"})

    def __init__(self):
        self.calls = []

    def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
        self.calls.append(cond)
        return cond * x_t

    def predict_x0(self, handle, x_t, t, cond, *, attn_kind="dense"):
        return x_t - flow.expand_to(t / 1000, x_t) * self.predict(handle, x_t, t, cond)


def test_guidance_is_the_standard_convention_and_affine():
    adapter = LinearAdapter()
    model = GuidedModel(adapter, None, cond=3.0, uncond=1.0, guidance_scale=5.0)
    x_t, t = torch.ones(1, 1, 1, 1, 1), torch.tensor([500.0])
    assert float(model.predict(x_t, t)) == 1.0 + 5.0 * (3.0 - 1.0)
    from_x0 = (x_t - model.predict_x0(x_t, t)) / 0.5
    torch.testing.assert_close(from_x0, model.predict(x_t, t))


def test_no_guidance_makes_no_unconditional_pass():
    adapter = LinearAdapter()
    model = GuidedModel(adapter, None, cond=3.0, uncond=None, guidance_scale=1.0)
    assert float(model.predict(torch.ones(1, 1, 1, 1, 1), torch.tensor([500.0]))) == 3.0
    assert adapter.calls == [3.0]


def sample(model, timesteps=None, function=sample_ode, seeds=(7,), **spec):
    sampler = LoadedSampler(fvd.SamplerSpec(name="loop", target="a:b", **spec), function)
    return sample_latents(model, sampler=sampler, shape=(1, 1, 2, 2), steps=3, timesteps=timesteps, seeds=seeds)


@pytest.fixture
def model():
    """The Gaussian, with an adapter that remembers which schedulers it was asked for."""
    made = GaussianModel()
    made.asked = []
    made.adapter = SimpleNamespace(
        device=torch.device("cpu"), scheduler=lambda kind: made.asked.append(kind) or EulerScheduler()
    )
    return made


def test_initial_noise_is_that_of_a_cpu_generator_and_samples_are_independent(model):
    seen = []

    def remember(model, latents, **_):
        seen.append(latents)
        return latents

    sample(model, function=remember, seeds=(7, 8))
    expected = torch.randn(1, 1, 1, 2, 2, generator=torch.Generator().manual_seed(8))
    assert torch.equal(seen[0][1:], expected)


def test_a_solver_refuses_explicit_timesteps(model):
    with pytest.raises(FvdError, match="loop takes a number of steps; its solver places the timesteps itself"):
        sample(model, (1000.0, 500.0))


def test_a_loop_gets_the_scheduler_and_the_timesteps_that_its_descriptor_asks_for(model):
    seen = []

    def loop(model, latents, *, scheduler, timesteps, generators):
        seen.append((vars(scheduler), timesteps.tolist(), len(generators)))
        return latents

    sample(model, function=loop, scheduler="exotic")
    sample(model, (900.0, 100.0), function=loop, scheduler="sde", takes_timesteps=True)
    assert model.asked == ["exotic", "sde"]
    assert seen[0][1] == pytest.approx([1000.0, 2000 / 3, 1000 / 3])
    assert seen[1] == ({}, [900.0, 100.0], 1)  # a fresh scheduler: nothing has been set


@pytest.mark.parametrize(("returned", "got"), [(lambda x: x[:, :, :, :1], r"\[1, 1, 1, 1, 2\]"), (lambda x: [x], "list")])
def test_a_loop_that_returns_something_else_is_refused(model, returned, got):
    with pytest.raises(PluginError, match=rf"the sampler loop must return latents of shape \[1, 1, 1, 2, 2\], got {got}"):
        sample(model, function=lambda model, latents, **_: returned(latents))


# --- plans -----------------------------------------------------------------------------------------------------------
PLAN = fvd.SamplingPlan(role="student", sampler_kind="ode", sampling_steps=(4,))


def check(family_samplers, **changes):
    family = fvd.FamilySpec(name="f", target="a:b", config="a:c", provides=set(), samplers=family_samplers)
    check_plan(dataclasses.replace(PLAN, **changes), load_plugins(only=()), family)


def test_a_plan_is_checked_before_anything_is_loaded():
    check({"ode"})
    check({"sde"}, sampler_kind="sde", sampling_timesteps=(1000.0, 500.0))
    check({"ode"}, sampler_kind="ddim", sampling_timesteps=(1000.0, 500.0))
    with pytest.raises(PluginError, match=r"sampler 'odee'.*did you mean 'ode'"):
        check({"ode"}, sampler_kind="odee")
    with pytest.raises(FvdError, match=r"ode needs a scheduler of kind 'ode', which family f lacks\nIt has: euler, sde"):
        check({"sde", "euler"})
    with pytest.raises(FvdError, match="It has: none"):
        check(set())
    with pytest.raises(FvdError, match="places the timesteps itself"):
        check({"ode"}, sampling_timesteps=(1000.0, 500.0))
