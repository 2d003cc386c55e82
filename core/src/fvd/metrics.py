"""The metrics of one step, on their device until the step's one host sync."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class WeightedMean:
    """A mean over some of a step's samples, as a value of `fvd.Loss.metrics`: a timestep bin, the kept samples.

    total: the sum, weight: what it is divided by; both detached 0-dim tensors. Both are summed over the micro-batches of a
    step and divided at its end, so that a micro-batch with more of these samples counts for more. A metric whose weight is
    0 in a whole step is not logged at that step.
    """

    total: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Deviation:
    """A standard deviation over some of a step's values, as a value of `fvd.Loss.metrics`: sqrt(E[x²] − E[x]²).

    total: the sum of x, squares: of x², weight: the number of values; detached 0-dim tensors, summed as those of `WeightedMean`
    are. So the size of a micro-batch does not matter, and samples that are all alike show, one to a micro-batch too.
    """

    total: Tensor
    squares: Tensor
    weight: Tensor


MetricValue = Tensor | float | WeightedMean | Deviation


def moments(name: str, values: Tensor, kept: Tensor) -> Mapping[str, WeightedMean | Deviation]:
    """``<name>_mean`` and ``<name>_std`` of all elements of the samples of ``values`` [B, ...] that are ``kept`` [B] bool.
    Detached, float32; no host sync."""
    values = values.detach().float().flatten(1)
    weight = kept.sum().float() * values.shape[1]
    total = torch.where(kept[:, None], values, 0.0).sum()
    squares = torch.where(kept[:, None], values.square(), 0.0).sum()
    return {f"{name}_mean": WeightedMean(total, weight), f"{name}_std": Deviation(total, squares, weight)}


def timestep_bins(num_train_timesteps: int, bins: int) -> dict[str, tuple[float, float]]:
    """``bins`` equal ranges of the schedule by the names that metrics have: of 1000 in five ``t_0_200`` to ``t_800_1000``."""
    edges = [num_train_timesteps * edge / bins for edge in range(bins + 1)]
    return {f"t_{low:.0f}_{high:.0f}": (low, high) for low, high in pairwise(edges)}


def per_bin(name: str, values: Tensor, t: Tensor, num_train_timesteps: int, *, bins: int = 5) -> Mapping[str, WeightedMean]:
    """The mean of ``values`` [B] in each of ``bins`` equal ranges of the timesteps ``t`` [B].

    Of ``per_bin("loss", loss, t, 1000)`` the names are ``loss/t_0_200`` to ``loss/t_800_1000``; a bin holds its lower end,
    the last one its upper end too. Detached, float32; no host sync, whatever the timesteps are.
    """
    index = (t.detach().float() / num_train_timesteps * bins).long().clamp(0, bins - 1)
    inside = index[None] == torch.arange(bins, device=t.device)[:, None]  # [bins, B]
    totals = torch.where(inside, values.detach().float()[None], 0.0).sum(dim=1).unbind()
    weights = inside.float().sum(dim=1).unbind()
    ranges = timestep_bins(num_train_timesteps, bins)
    return {f"{name}/{bin}": WeightedMean(*sums) for bin, *sums in zip(ranges, totals, weights, strict=True)}


class StepMetrics:
    """Scalars collected over the micro-batches of a step: means and sums."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor | float] = {}
        self._weights: dict[str, Tensor | float] = {}
        self._squares: dict[str, Tensor | float] = {}

    def mean(self, name: str, value: MetricValue) -> None:
        """Averaged over the times that it is given, or as a `WeightedMean` or `Deviation` says."""
        if isinstance(value, (WeightedMean, Deviation)):
            _accumulate(self._totals, name, value.total)
            _accumulate(self._weights, name, value.weight)
            if isinstance(value, Deviation):
                _accumulate(self._squares, name, value.squares)
        else:
            _accumulate(self._totals, name, value)
            _accumulate(self._weights, name, 1.0)

    def sum(self, name: str, value: Tensor | float) -> None:
        """Added up."""
        _accumulate(self._totals, name, value)
        self._weights[name] = 1.0

    def to_host(self) -> dict[str, float]:
        """All of them that have a weight, as floats, in one transfer."""
        scalars = [*self._totals.values(), *self._weights.values(), *self._squares.values()]
        on_host = iter(_one_transfer([scalar for scalar in scalars if isinstance(scalar, Tensor)]))
        values = [next(on_host) if isinstance(scalar, Tensor) else scalar for scalar in scalars]
        count = len(self._totals)
        totals, weights, squares = values[:count], values[count : 2 * count], values[2 * count :]
        means = {name: total / weight for name, total, weight in zip(self._totals, totals, weights, strict=True) if weight}
        weight_of = dict(zip(self._totals, weights, strict=True))
        for name, square in zip(self._squares, squares, strict=True):
            if name in means:
                variance = square / weight_of[name] - means[name] ** 2
                # Rounding may take it a little below 0; max() would make 0 of a NaN.
                means[name] = 0.0 if variance < 0 else math.sqrt(variance)
        return means


def _accumulate(sums: dict[str, Tensor | float], name: str, value: Tensor | float) -> None:
    # Copied: a method may go on to change in place what it has handed over.
    scalar = value.detach().to(torch.float32, copy=True) if isinstance(value, Tensor) else float(value)
    sums[name] = sums[name] + scalar if name in sums else scalar


def _one_transfer(scalars: list[Tensor]) -> list[float]:
    """Those of a method may lie on another device than the gradients'."""
    if not scalars:
        return []
    device = next((scalar.device for scalar in scalars if scalar.device.type != "cpu"), scalars[0].device)
    values: list[float] = torch.stack([scalar.to(device) for scalar in scalars]).tolist()
    return values
