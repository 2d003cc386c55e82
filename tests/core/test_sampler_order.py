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


def error(name: str, steps: int, flow_shift: float = 1.0) -> float:
    """Root mean square distance of `sample_ode`'s points to the exact ones."""
    solver = solved_by(name, steps, flow_shift)
    if isinstance(solver.scheduler, CountsSteps):
        solver.scheduler.set_begin_index(0)  # as fvd does: timesteps that are rounded may be equal
    noise = initial_noise()
    sampled = sample_ode(
        gaussian_model(solver.predicts), noise, scheduler=solver.scheduler, timesteps=solver.scheduler.timesteps, generators=[]
    )
    return float((sampled.flatten(1).double() - exact_flow(noise.flatten(1).double(), *solver.start)).square().mean().sqrt())


def slope(steps: list[int], errors: list[float]) -> float:
    """Order of convergence: minus the slope of log error over log steps, least squares."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])
if __name__ == "__main__":
    for n in ("unipc","toy_ddim","diffusers_ddim","dpm_solver"):
        for sh in (1.0,3.0) if n=="toy_ddim" else (1.0,):
            for steps in ([9,27,37,111],[27,37,111],[37,111,333]) if n=="unipc" else ([20,40,50,100],[50,100,200],[100,200,500]):
                e=[error(n,s,sh) for s in steps]
                print(n,sh,steps,["%.2e"%x for x in e],"%.3f"%slope(steps,e))
