"""The student's gradient is the gradient of a Kullback-Leibler divergence, where both have a closed form.

Student N(m, s^2) with x0 = m + s z, teacher N(M, S^2), and a critic that knows the student exactly. At noise level sigma, with
a = 1 - sigma, both are Gaussian: N(a m, a^2 s^2 + sigma^2) and N(a M, a^2 S^2 + sigma^2). DMD (arXiv:2311.18828, eq. 2 and 7)
descends their divergence; with F - R = sigma^2 / a (score of the student - score of the teacher) and d x_t = a d x0,

    dL/dp = (sigma^2 / a^2) d KL(student_t || teacher_t)/dp / w            p = m, s

where the normaliser w = E|x0 - R| is the mean of a folded normal distribution. The divergence is differentiated by autograd, in
float64; nothing of the method is used for what is expected.
"""

from __future__ import annotations

import math

import pytest
import torch
from small_video import SmallVideoAdapter, small_raw_batch, small_run
from torch import Tensor, nn

from fvd import RoleHandle, RoleManager
from fvd.testing.steps import step_random
from fvd_dmd2.config import DMD2Config
from fvd_dmd2.method import DMD2Method

TEACHER = (2.0, 0.5)
BATCH = 1024
"""Of 96 elements each: estimates of a mean are good to half a percent."""


class GaussianPrediction(nn.Module):
    """The velocity whose x0 is E[x0 | x_t] for x0 ~ N(mean, std^2)."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(std))

    def forward(self, x_t: Tensor, sigma: Tensor, embeddings: Tensor, mask: Tensor) -> Tensor:
        s = sigma.view(-1, 1, 1, 1, 1)
        gain = (1 - s) * self.std**2 / ((1 - s) ** 2 * self.std**2 + s**2)
        return (x_t - self.mean - gain * (x_t - (1 - s) * self.mean)) / s


class OneStepStudent(nn.Module):
    """x0 = mean + std x_t at t = 1000, where x_t is standard normal."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(std))

    def forward(self, x_t: Tensor, sigma: Tensor, embeddings: Tensor, mask: Tensor) -> Tensor:
        return x_t - (self.mean + self.std * x_t)


def gradient_of_the_method(student: tuple[float, float], sigma: float, normalizer: str) -> tuple[float, float]:
    """(dL/dm, dL/ds) of DMD2's student loss at one noise level, no guidance."""
    modules = {
        "student": OneStepStudent(*student),
        "teacher": GaussianPrediction(*TEACHER),
        "critic": GaussianPrediction(*student),
    }
    handles = [
        RoleHandle(name=name, family="small_video", trainable=name != "teacher", modules={"transformer": module})
        for name, module in modules.items()
    ]
    roles = RoleManager([handle.apply_trainable() for handle in handles])
    config = DMD2Config(
        dmd_denoising_steps=[1000],
        generator_update_interval=1,
        real_score_guidance_scale=0,
        min_timestep_ratio=sigma,
        max_timestep_ratio=sigma + 1e-5,
        normalizer=normalizer,
    )
    method = DMD2Method.build(run=small_run(roles, config), roles=roles, adapter=SmallVideoAdapter())
    method.on_train_start()
    loss = next(iter(method.single_train_step(small_raw_batch(BATCH), 1, rng=step_random(1, BATCH))))
    assert loss.role == "student"
    loss.value.backward()
    network = modules["student"]
    return float(network.mean.grad), float(network.std.grad)


def folded_mean(mean: float, std: float) -> float:
    """E|N(mean, std^2)|."""
    return std * math.sqrt(2 / math.pi) * math.exp(-(mean**2) / (2 * std**2)) + mean * math.erf(mean / (std * math.sqrt(2)))


def gradient_of_the_divergence(student: tuple[float, float], sigma: float) -> tuple[float, float]:
    (mean, std), a = student, 1 - sigma
    parameters = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in student]
    ours = torch.distributions.Normal(a * parameters[0], (a**2 * parameters[1] ** 2 + sigma**2).sqrt())
    teacher_variance = a**2 * TEACHER[1] ** 2 + sigma**2
    theirs = torch.distributions.Normal(
        torch.tensor(a * TEACHER[0], dtype=torch.float64), torch.tensor(teacher_variance, dtype=torch.float64).sqrt()
    )
    divergence = torch.distributions.kl_divergence(ours, theirs)
    gradients = torch.autograd.grad(divergence, parameters)

    # x0 - R = (m - M + s z) sigma^2 / v - gain sigma noise
    keeps, gain = sigma**2 / teacher_variance, a * TEACHER[1] ** 2 / teacher_variance
    normalizer = folded_mean((mean - TEACHER[0]) * keeps, math.hypot(std * keeps, gain * sigma))
    by_mean, by_std = (sigma**2 / a**2 * float(gradient) / normalizer for gradient in gradients)
    return by_mean, by_std


@pytest.mark.parametrize(("normalizer", "tolerance"), [("batch", 0.015), ("sample", 0.04)])
@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("student", [(1.0, 0.9), (2.6, 0.2)])
def test_it_is_the_gradient_of_the_divergence(student, sigma, normalizer, tolerance):
    """``sample``: w of a sample is the mean of 96 elements, which goes with its gradient to a few percent."""
    expected = gradient_of_the_divergence(student, sigma)
    assert gradient_of_the_method(student, sigma, normalizer) == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.9])
def test_it_vanishes_where_the_distributions_are_equal(sigma):
    assert gradient_of_the_divergence(TEACHER, sigma) == pytest.approx((0, 0), abs=1e-12)
    assert gradient_of_the_method(TEACHER, sigma, "sample") == (0, 0)


def test_its_signs_bring_mean_and_spread_to_the_teachers():
    """Too low or too high, too narrow or too wide."""
    for student in ((1.0, 0.2), (1.0, 0.9), (3.0, 0.2), (3.0, 0.9)):
        by_mean, by_std = gradient_of_the_method(student, 0.5, "batch")
        assert (by_mean > 0) == (student[0] > TEACHER[0])
        assert (by_std > 0) == (student[1] > TEACHER[1])
