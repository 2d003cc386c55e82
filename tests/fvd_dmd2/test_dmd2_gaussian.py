"""A distillation problem with a known answer: Gaussian data N(mu, s^2), for which the optimal score is a formula.

The student's samples are m + s z. Where m = mu and the critic is optimal, the gradient is zero; elsewhere DMD2 brings m to mu.
"""

from __future__ import annotations

import torch
from small_video import SmallVideoAdapter, small_raw_batch, small_run
from torch import Tensor, nn

from fvd import RoleHandle, RoleManager
from fvd.testing.steps import train_step
from fvd_dmd2.config import DMD2Config
from fvd_dmd2.method import DMD2Method

STD = 0.5
TARGET_MEAN = 2.0


class GaussianScore(nn.Module):
    """The velocity whose x0 is E[x0 | x_t] for x0 ~ N(mean, STD^2)."""

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))

    def forward(self, x_t: Tensor, sigma: Tensor, embeddings: Tensor, mask: Tensor) -> Tensor:
        s = sigma.view(-1, 1, 1, 1, 1)
        variance = (1 - s) ** 2 * STD**2 + s**2
        x0 = self.mean + (1 - s) * STD**2 / variance * (x_t - (1 - s) * self.mean)
        return (x_t - x0) / s


class OneStepStudent(nn.Module):
    """x0 = mean + STD x_t at t = 1000, where x_t is standard normal."""

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))

    def forward(self, x_t: Tensor, sigma: Tensor, embeddings: Tensor, mask: Tensor) -> Tensor:
        return x_t - (self.mean + STD * x_t)


def gaussian_dmd2(student_mean: float, critic_mean: float, *, interval: int) -> DMD2Method:
    modules = {
        "student": OneStepStudent(student_mean),
        "teacher": GaussianScore(TARGET_MEAN),
        "critic": GaussianScore(critic_mean),
    }
    handles = [
        RoleHandle(name=name, family="small_video", trainable=name != "teacher", modules={"transformer": module})
        for name, module in modules.items()
    ]
    for handle in handles:
        handle.apply_trainable()
    roles = RoleManager(handles)
    config = DMD2Config(dmd_denoising_steps=[1000], generator_update_interval=interval, real_score_guidance_scale=0)
    run = small_run(roles, config, training={"learning_rate": 0.05, "weight_decay": 0.0, "betas": (0.0, 0.99)})
    return DMD2Method.build(run=run, roles=roles, adapter=SmallVideoAdapter())


def mean_of(method: DMD2Method, role: str) -> float:
    return float(method.roles[role].modules["transformer"].mean.detach())


def test_matching_distributions_are_a_fixed_point():
    method = gaussian_dmd2(TARGET_MEAN, TARGET_MEAN, interval=1)
    logged = train_step(method, small_raw_batch(4), 1)
    assert logged["student_loss"] == 0
    assert mean_of(method, "student") == TARGET_MEAN


def test_gradient_points_to_the_teacher():
    for student_mean in (TARGET_MEAN - 1, TARGET_MEAN + 1):
        method = gaussian_dmd2(student_mean, student_mean, interval=1)
        train_step(method, small_raw_batch(4), 1)
        assert (mean_of(method, "student") - student_mean) * (TARGET_MEAN - student_mean) > 0


def test_dmd2_brings_the_student_to_the_teacher_and_the_critic_to_the_student():
    method = gaussian_dmd2(-1.0, 0.5, interval=3)
    for iteration in range(1, 601):
        train_step(method, small_raw_batch(2), iteration)
    assert abs(mean_of(method, "student") - TARGET_MEAN) < 0.15
    assert abs(mean_of(method, "critic") - mean_of(method, "student")) < 0.25
