"""The regression term of DMD (arXiv:2311.18828, eq. 9), on stored solutions of the teacher's ODE.

    L_reg = mean (x0_student(x_t, t) - x0)^2

x_t is a point of the solution near a rung of the student's ladder, at its own timestep t (for the first rung the noise), and
x0 the solution's end. DMD adds it to distribution matching, so that no mode of the teacher is lost, and measures it in LPIPS;
in latents mean squares take its place. It has a graph and a backward pass of its own, so that memory holds one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import fvd
from fvd.adapters import Conditioning
from fvd.data.trajectories import Pairs, Trajectories
from fvd.errors import DataError
from fvd.losses import squared_error
from fvd.metrics import MetricValue, WeightedMean
from fvd.rng import to_device

PredictX0 = Callable[[Tensor, Tensor, Conditioning], Tensor]


def draw_pairs(trajectories: Trajectories, ladder: Sequence[float], rng: fvd.StepRandom, like: Tensor) -> Pairs:
    """For each sample the point near a rung of the ladder, each with equal chances; of the shape and on the device of ``like``.

    One draw a sample. Raises DataError for a rung that is not stored, and for trajectories of another size than the run's.
    """
    shape = trajectories.points.shape[2:]
    if shape != like.shape[1:]:
        raise DataError(
            f"the trajectories in the data have latents {list(shape)}, and this run has {list(like.shape[1:])} (C, T, H, W)",
            cure="Correct training.num_frames, num_height and num_width, or make the pairs at this size.",
        )
    return trajectories.pairs([ladder[rung] for rung in rng.indices(len(ladder))], device=like.device)


def regression_error(predict_x0: PredictX0, pairs: Pairs, cond: Conditioning) -> Tensor:
    """The student's mean squared error at each sample, [B], with its graph."""
    return squared_error(predict_x0(pairs.x_t, pairs.t, cond), pairs.x0)


def regression_term(errors: Tensor, dropped: Tensor) -> tuple[Tensor, dict[str, MetricValue]]:
    """Mean of ``errors`` [B] (0-dim), and metrics.

    dropped: [B] bool, samples whose text was dropped: their x0 is the teacher's for another text. They add nothing and still
    count in the mean, so that no sample's gradient depends on its neighbours.
    """
    kept = to_device(~dropped, errors.device)
    total = torch.where(kept, errors, 0.0).sum()
    metrics: dict[str, MetricValue] = {"dmd2/regression_error": WeightedMean(total.detach(), kept.sum().float())}
    return total / len(errors), metrics
