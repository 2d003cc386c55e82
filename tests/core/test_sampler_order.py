"""Samplers on Gaussian data, where the probability-flow ODE has a closed form: they converge to it, each with its order.

Data N(mu, S) noised by x_t = alpha x0 + sigma noise is N(alpha mu, alpha^2 S + sigma^2 I). Along an eigenvector of S with
eigenvalue l the ODE keeps u = (x_t - alpha mu) / sqrt(alpha^2 l + sigma^2), so that pure noise z arrives at mu + sqrt(l) u. The
posterior mean of x0 is affine in x_t. All references are written here, in float64; adapters, schedulers and loops are fvd's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor, nn

import fvd
from fvd.samplers.ddim import sample_ddim
from fvd.samplers.guidance import GuidedModel
from fvd.samplers.ode import sample_ode
from fvd.samplers.sampling import CountsSteps
from fvd.samplers.sde import sample_sde
from fvd.testing.toy.config import ToyConfig
from fvd.testing.toy.workbench import toy_family

Predicts = Literal["velocity", "noise"]
BOTH = pytest.mark.parametrize("predicts", ["velocity", "noise"])

MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
AXES = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
"""Columns are the eigenvectors of S."""
VARIANCES = torch.tensor([0.3**2, 1.4**2], dtype=torch.float64)
COUNT = 64

ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def signal_and_noise(predicts: Predicts, t: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) at timesteps [B], float64: flow matching's, or DDPM's with alpha^2 linear between the entries."""
    if predicts == "velocity":
        return 1 - t.double() / 1000, t.double() / 1000
    signal = torch.from_numpy(np.interp(t.double().numpy(), np.arange(1000), ALPHAS_CUMPROD))
    return signal.sqrt(), (1 - signal).sqrt()


def posterior_mean(x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x_t] of points [B, 2]: mu + alpha S (alpha^2 S + sigma^2 I)^-1 (x_t - alpha mu)."""
    alpha, sigma = alpha[:, None], sigma[:, None]
    shrinkage = alpha * VARIANCES / (alpha**2 * VARIANCES + sigma**2)
    return MEAN + ((x_t - alpha * MEAN) @ AXES * shrinkage) @ AXES.T


def exact_flow(z: Tensor, alpha: float, sigma: float) -> Tensor:
    """Where the ODE takes points [B, 2] from the noise level (alpha, sigma)."""
    u = (z - alpha * MEAN) @ AXES / (alpha**2 * VARIANCES + sigma**2).sqrt()
    return MEAN + (VARIANCES.sqrt() * u) @ AXES.T


class GaussianNetwork(nn.Module):
    """The exact prediction, with the signature of the toy's networks."""

    def __init__(self, predicts: Predicts) -> None:
        super().__init__()
        self.predicts = predicts

    def forward(self, x_t: Tensor, time: Tensor, weights: Tensor) -> Tensor:
        alpha, sigma = signal_and_noise(self.predicts, 1000 * time.double())
        x = x_t.flatten(1).double()
        x0 = posterior_mean(x, alpha, sigma)
        noise = (x - alpha[:, None] * x0) / sigma[:, None]
        return (noise if self.predicts == "noise" else noise - x0).float().reshape(x_t.shape)


def gaussian_model(predicts: Predicts, *, flow_shift: float = 1.0, count: int = COUNT) -> GuidedModel:
    """A real adapter of either parametrisation around the exact network."""
    family = toy_family(predicts, config=ToyConfig(flow_shift=flow_shift))
    handle = fvd.RoleHandle(
        name="teacher", family=family.name, trainable=False, modules={"transformer": GaussianNetwork(predicts)}
    )
    adapter = family.build_adapter(fvd.RoleManager([handle]))
    return GuidedModel(adapter, handle, adapter.encode_prompts([""] * count), None)


def initial_noise(count: int = COUNT) -> Tensor:
    return torch.randn(count, 2, 1, 1, 1, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Solver:
    """A scheduler as a family would hand it out. start: (alpha, sigma) of the first x_t, by the scheduler's own account; where
    it is not pure noise, the ODE starts there too."""

    predicts: Predicts
    scheduler: object
    start: tuple[float, float]


def solved_by(name: str, steps: int, flow_shift: float) -> Solver:
    """The solver with its timesteps set."""
    table_end = (math.sqrt(ALPHAS_CUMPROD[-1]), math.sqrt(1 - ALPHAS_CUMPROD[-1]))
    ddpm = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "timestep_spacing": "trailing"}
    match name:
        case "toy_euler":
            solver = Solver("velocity", gaussian_model("velocity", flow_shift=flow_shift).adapter.scheduler("ode"), (0.0, 1.0))
        case "flow_euler":
            solver = Solver("velocity", FlowMatchEulerDiscreteScheduler(shift=flow_shift), (0.0, 1.0))
        case "unipc":
            unipc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift)
            unipc.set_timesteps(steps)
            first = float(unipc.sigmas[0])
            return Solver("velocity", unipc, (1 - first, first))
        case "toy_ddim":
            solver = Solver("noise", gaussian_model("noise", flow_shift=flow_shift).adapter.scheduler("ode"), table_end)
        case "diffusers_ddim":
            solver = Solver("noise", DDIMScheduler(clip_sample=False, **ddpm), table_end)
        case "dpm_solver":
            solver = Solver("noise", DPMSolverMultistepScheduler(final_sigmas_type="zero", **ddpm), table_end)
        case _:
            raise ValueError(name)
    solver.scheduler.set_timesteps(steps)
    return solver


def error(name: str, steps: int, flow_shift: float = 1.0, *, rounded_timesteps: bool = False) -> float:
    """Root mean square distance of `sample_ode`'s points to the exact ones.

    rounded_timesteps: as UniPC gives them, whole numbers below those of its own noise levels.
    """
    solver = solved_by(name, steps, flow_shift)
    scheduler, timesteps = solver.scheduler, solver.scheduler.timesteps
    if isinstance(scheduler, UniPCMultistepScheduler) and not rounded_timesteps:
        timesteps = 1000 * scheduler.sigmas[:-1]
    if isinstance(scheduler, CountsSteps):
        scheduler.set_begin_index(0)  # as fvd does: a solver that rounds its timesteps may have equal ones
    noise = initial_noise()
    sampled = sample_ode(gaussian_model(solver.predicts), noise, scheduler=scheduler, timesteps=timesteps, generators=[])
    return float((sampled.flatten(1).double() - exact_flow(noise.flatten(1).double(), *solver.start)).square().mean().sqrt())


def slope(steps: list[int], errors: list[float]) -> float:
    """Order of convergence: minus the slope of log error over log steps, least squares."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


@pytest.mark.parametrize(
    ("name", "flow_shift"),
    [
        ("toy_euler", 1.0),
        ("toy_euler", 3.0),
        ("flow_euler", 1.0),
        ("flow_euler", 3.0),
        ("toy_ddim", 1.0),
        ("diffusers_ddim", 1.0),
    ],
)
def test_first_order(name, flow_shift):
    steps = [50, 100, 200]
    errors = [error(name, count, flow_shift) for count in steps]
    assert errors[-1] < 0.02
    assert 0.9 < slope(steps, errors) < 1.1, errors


@pytest.mark.parametrize(("name", "flow_shift"), [("unipc", 1.0), ("unipc", 3.0), ("dpm_solver", 1.0)])
def test_second_order(name, flow_shift):
    """And at 40 steps a fraction of the first-order solvers' error."""
    steps = [40, 100, 200] if name == "unipc" else [20, 40, 100]
    errors = [error(name, count, flow_shift) for count in steps]
    assert slope(steps, errors) > 1.8, errors
    first_order = error("flow_euler" if name == "unipc" else "toy_ddim", 40, flow_shift)
    assert error(name, 40, flow_shift) < first_order / 5


def test_rounded_timesteps_cost_unipc_its_order():
    """diffusers hands the network integers where the solver's own noise levels lie between them: what that costs is below
    1/1000 of the noise, and no number of steps wins it back. (fvd samples as diffusers' pipelines do.)"""
    rounded, exact = (error("unipc", 100, rounded_timesteps=rounded) for rounded in (True, False))
    assert exact < 2e-4 < 5e-4 < rounded < 2e-3


# --- ddim and sde, which take any list of timesteps ---
def ladder(predicts: Predicts, steps: int) -> Tensor:
    """Falling evenly from the noisiest timestep, and ending before 0: the last x0 is the result."""
    last = 1000.0 if predicts == "velocity" else 999.0
    return torch.linspace(last, 0, steps + 1, dtype=torch.float64)[:-1].float()


@BOTH
def test_ddim_is_of_first_order_on_any_timesteps(predicts):
    noise, steps, errors = initial_noise(), [50, 100, 200], []
    start = tuple(float(level) for level in signal_and_noise(predicts, ladder(predicts, 1)))
    for count in steps:
        sampled = sample_ddim(gaussian_model(predicts), noise, scheduler=None, timesteps=ladder(predicts, count), generators=[])
        exact = exact_flow(noise.flatten(1).double(), *start)
        errors.append(float((sampled.flatten(1).double() - exact).square().mean().sqrt()))
    assert 0.9 < slope(steps, errors) < 1.1, errors


@BOTH
def test_ddim_is_the_familys_own_first_order_solver(predicts):
    """Euler's method for flow matching, DDIM for diffusion."""
    model, noise = gaussian_model(predicts), initial_noise()
    scheduler = model.adapter.scheduler("ode")
    scheduler.set_timesteps(12)
    solved = sample_ode(model, noise, scheduler=scheduler, timesteps=scheduler.timesteps, generators=[])
    ours = sample_ddim(model, noise, scheduler=None, timesteps=ladder(predicts, 12), generators=[])
    torch.testing.assert_close(ours, solved, rtol=1e-4, atol=1e-4)


def student_chain(predicts: Predicts, timesteps: Tensor, seeds: range) -> Tensor:
    """What `sde` computes, written out: each generator draws the initial noise and then one noise a step."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw() -> Tensor:
        return torch.stack([torch.randn(2, 1, 1, 1, generator=generator) for generator in generators]).flatten(1).double()

    x_t = draw()
    for index, step in enumerate(timesteps):
        alpha, sigma = signal_and_noise(predicts, step.expand(len(x_t)))
        x0 = posterior_mean(x_t, alpha, sigma)
        if index + 1 < len(timesteps):
            alpha, sigma = signal_and_noise(predicts, timesteps[index + 1].expand(len(x_t)))
            x_t = alpha[:, None] * x0 + sigma[:, None] * draw()
    return x0


@BOTH
def test_sde_has_the_moments_of_its_chain(predicts):
    """Every step is affine in what comes in and in a fresh normal draw, so mean and variances along the axes of S follow from
    those of the step before: m' = a + k (alpha m - alpha mu), v' = k^2 (alpha^2 v + sigma^2), with k of the posterior mean."""
    timesteps, count = torch.tensor([900.0, 600.0, 300.0]), 4000
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    noise = torch.stack([torch.randn(2, 1, 1, 1, generator=generator) for generator in generators])
    model = gaussian_model(predicts, count=count)
    sampled = sample_sde(model, noise, scheduler=None, timesteps=timesteps, generators=generators).flatten(1).double()
    torch.testing.assert_close(sampled, student_chain(predicts, timesteps, range(count)), rtol=1e-4, atol=1e-4)

    mean, variances = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)  # of x_t: pure noise
    centre = MEAN @ AXES
    for index, step in enumerate(timesteps):
        alpha, sigma = (float(level) for level in signal_and_noise(predicts, step[None]))
        if index > 0:
            mean, variances = alpha * mean, alpha**2 * variances + sigma**2
        gain = alpha * VARIANCES / (alpha**2 * VARIANCES + sigma**2)
        mean, variances = centre + gain * (mean - alpha * centre), gain**2 * variances
    along = sampled @ AXES
    assert ((along.mean(dim=0) - mean).abs() < 4 * (variances / count).sqrt()).all()
    assert ((along.var(dim=0) / variances - 1).abs() < 4 * math.sqrt(2 / count)).all()
    assert (variances < 0.7 * VARIANCES).all()  # a posterior mean, noised again, loses variance


@BOTH
def test_one_step_of_sde_is_the_posterior_mean(predicts):
    """From pure noise at the last timestep: the data's mean, up to what signal the schedule leaves there."""
    noise, timesteps = initial_noise(), ladder(predicts, 1)
    points = sample_sde(gaussian_model(predicts), noise, scheduler=None, timesteps=timesteps, generators=[]).flatten(1).double()
    alpha, sigma = (level.expand(COUNT) for level in signal_and_noise(predicts, timesteps))
    torch.testing.assert_close(points, posterior_mean(noise.flatten(1).double(), alpha, sigma), rtol=1e-4, atol=1e-4)
    assert (points - MEAN).abs().max() < (1e-6 if predicts == "velocity" else 0.05)
