"""Losses as pure functions of tensors [B, C, T, H, W], in float32.

Notation of DMD (Yin et al. 2023, arXiv:2311.18828) and DMD2 (Yin et al. 2024, arXiv:2405.14867): the student's sample x, and
at a noised x the x0 predictions of the teacher ("real") R and of the critic ("fake") F.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fvd.flow import expand_to
from fvd.metrics import WeightedMean

NormalizedOver = Literal["sample", "frame", "batch"]
NormalizerGuard = Literal["floor", "add", "none"]

NORMALIZER_EPSILON = 1e-5
"""Below this the teacher agrees with the student to rounding, and dividing by it would only amplify noise."""


def mean_per_sample(values: Tensor) -> Tensor:
    """[B, ...] -> [B], float32."""
    return values.float().flatten(1).mean(dim=1)


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """mean((prediction − target)²) of each sample, [B]."""
    return mean_per_sample((prediction.float() - target.float()).square())


def regression_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """mean((prediction − target)²), 0-dim. With the adapter's ``predict`` and ``training_target`` it is conditional flow
    matching (Lipman et al. 2022) or denoising score matching (Ho et al. 2020), as the family's networks are."""
    return functional.mse_loss(prediction.float(), target.float())


@dataclass(frozen=True)
class MatchingGradient:
    """The gradient that pulls the student's distribution towards the teacher's.

    value: g [B, C, T, H, W], 0 for a sample that was dropped. normalizer: w, of a shape that broadcasts to it. kept: [B]
    bool, False where the sample has a non-finite w or g.
    """

    value: Tensor
    normalizer: Tensor
    kept: Tensor

    def mean_over_kept(self, per_sample: Tensor) -> WeightedMean:
        """Mean of [B] over the kept samples, as a metric. No host sync."""
        total = torch.where(self.kept, per_sample.detach(), 0.0).sum()
        return WeightedMean(total, self.kept.sum().float())


@torch.no_grad()
def matching_gradient(
    x0: Tensor,
    fake_x0: Tensor,
    real_x0: Tensor,
    *,
    over: NormalizedOver = "sample",
    guard: NormalizerGuard = "floor",
    epsilon: float = NORMALIZER_EPSILON,
) -> MatchingGradient:
    """g = (F − R) / w with w = mean |x − R| (DMD, eq. 8).

    over: the elements of the mean: of each sample; of each latent frame of each sample; or of the whole micro-batch, where a
    sample's gradient depends on its neighbours. guard: ``floor`` is max(w, epsilon), ``add`` is w + epsilon, ``none`` is w.
    Non-finite samples are dropped, whatever the guard: their gradient is 0.
    """
    x0, fake_x0, real_x0 = x0.float(), fake_x0.float(), real_x0.float()
    distance = (x0 - real_x0).abs()
    axes = {"sample": (1, 2, 3, 4), "frame": (1, 3, 4), "batch": (0, 1, 2, 3, 4)}[over]
    normalizer = distance.mean(dim=axes, keepdim=True)
    if guard == "floor":
        normalizer = normalizer.clamp(min=epsilon)
    elif guard == "add":
        normalizer = normalizer + epsilon
    value = (fake_x0 - real_x0) / normalizer
    kept = torch.isfinite(value).flatten(1).all(dim=1) & torch.isfinite(normalizer).flatten(1).all(dim=1)
    return MatchingGradient(torch.where(expand_to(kept, x0), value, 0.0), normalizer, kept)


def distribution_matching_loss(x0: Tensor, gradient: MatchingGradient) -> Tensor:
    """L = ½ mean((x − stop_gradient(x − g))²), so that dL/dx = g / x.numel(). 0-dim.

    A dropped sample adds nothing and still counts in the mean: the other samples' gradients do not depend on it. That
    holds where teacher or critic gave the non-finite numbers; where the student's own forward did, its activations make
    the parameters' gradients non-finite whatever the loss, and the trainer skips the step.
    """
    x0 = torch.where(expand_to(gradient.kept, x0), x0.float(), 0.0)
    return 0.5 * functional.mse_loss(x0, (x0 - gradient.value).detach())
