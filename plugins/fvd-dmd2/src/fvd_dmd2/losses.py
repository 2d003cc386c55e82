"""The two losses of DMD2 as pure functions of tensors [B, C, T, H, W], in float32.

Notation of arXiv:2405.14867: the student's sample x, the teacher's ("real") x0 prediction R and the critic's ("fake") x0
prediction F at a noised x.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fvd.flow import expand_to

NORMALIZER_FLOOR = 1e-5
"""Below this the teacher agrees with the student to rounding, and dividing by it would only amplify noise."""


def guided_x0(cond_x0: Tensor, uncond_x0: Tensor, guidance_scale: float) -> Tensor:
    """R = x_u + s (x_c - x_u), standard convention, float32. s = 1 is x_c up to rounding: skip the forward instead."""
    return uncond_x0.float() + guidance_scale * (cond_x0.float() - uncond_x0.float())


@dataclass(frozen=True)
class MatchingGradient:
    """The gradient that pulls the student's distribution towards the teacher's.

    value: g [B, C, T, H, W], 0 for a sample that was dropped. normalizer: w [B]. kept: [B] bool, False where the
    sample has a non-finite w or g.
    """

    value: Tensor
    normalizer: Tensor
    kept: Tensor

    def mean_over_kept(self, per_sample: Tensor) -> Tensor:
        """Mean of [B] over the kept samples; 0 when none is. No host sync."""
        total = torch.where(self.kept, per_sample, 0.0).sum()
        return total / self.kept.sum().clamp(min=1)


@torch.no_grad()
def matching_gradient(x0: Tensor, fake_x0: Tensor, real_x0: Tensor) -> MatchingGradient:
    """g_b = (F_b - R_b) / w_b with w_b = mean |x_b - R_b|, floored at `NORMALIZER_FLOOR`, sample by sample."""
    x0, fake_x0, real_x0 = x0.float(), fake_x0.float(), real_x0.float()
    normalizer = (x0 - real_x0).abs().flatten(1).mean(dim=1).clamp(min=NORMALIZER_FLOOR)
    value = (fake_x0 - real_x0) / expand_to(normalizer, x0)
    kept = torch.isfinite(value).flatten(1).all(dim=1) & torch.isfinite(normalizer)
    return MatchingGradient(torch.where(expand_to(kept, x0), value, 0.0), normalizer, kept)


def distribution_matching_loss(x0: Tensor, gradient: MatchingGradient) -> Tensor:
    """L = 1/2 mean((x - stop_gradient(x - g))^2), so that dL/dx = g / x.numel(). 0-dim.

    A dropped sample adds nothing and still counts in the mean: the other samples' gradients do not depend on it. That
    holds where teacher or critic gave the non-finite numbers; where the student's own forward did, its activations make
    the parameters' gradients non-finite whatever the loss, and the trainer skips the step.
    """
    x0 = torch.where(expand_to(gradient.kept, x0), x0.float(), 0.0)
    return 0.5 * functional.mse_loss(x0, (x0 - gradient.value).detach())


def regression_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """mean((prediction - target)^2), the critic's loss in the network's own output space. 0-dim."""
    return functional.mse_loss(prediction.float(), target.float())
