"""The metrics of one step, on their device until the step's one host sync."""

from __future__ import annotations

import torch
from torch import Tensor


class StepMetrics:
    """Scalars collected over the micro-batches of a step: means and sums."""

    def __init__(self) -> None:
        self._values: dict[str, Tensor | float] = {}
        self._divisors: dict[str, int] = {}

    def mean(self, name: str, value: Tensor | float) -> None:
        """Averaged over the times that it is given."""
        self._add(name, value)
        self._divisors[name] = self._divisors.get(name, 0) + 1

    def sum(self, name: str, value: Tensor | float) -> None:
        """Added up."""
        self._add(name, value)
        self._divisors[name] = 1

    def _add(self, name: str, value: Tensor | float) -> None:
        # Cloned: a method may go on to change in place what it has handed over.
        scalar = value.detach().float().clone() if isinstance(value, Tensor) else float(value)
        self._values[name] = self._values[name] + scalar if name in self._values else scalar

    def to_host(self) -> dict[str, float]:
        """All of them, as floats, in one transfer."""
        tensors = {name: value for name, value in self._values.items() if isinstance(value, Tensor)}
        on_host = dict(zip(tensors, _one_transfer(list(tensors.values())), strict=True))
        values = {name: on_host.get(name, value) for name, value in self._values.items()}
        return {name: float(value) / self._divisors[name] for name, value in values.items()}


def _one_transfer(scalars: list[Tensor]) -> list[float]:
    """Those of a method may lie on another device than the gradients'."""
    if not scalars:
        return []
    device = next((scalar.device for scalar in scalars if scalar.device.type != "cpu"), scalars[0].device)
    values: list[float] = torch.stack([scalar.reshape(()).to(device) for scalar in scalars]).tolist()
    return values
