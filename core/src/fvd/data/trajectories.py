"""Stored solutions of a teacher's probability-flow ODE: points from noise to x0, of which a student learns the end.

Two fields of a sample: ``trajectory_latents`` [S, C, T, H, W], as a sampler has them (normalised, what the networks see; not
the VAE's own latents that ``vae_latent`` holds), and ``trajectory_timesteps`` [S], descending. Two labellings are read:

    `fvd data pairs`   the last timestep is 0: timestep i is that of point i, and the last point is x0.
    FastVideo          the last timestep is above 0: timestep i is that from which step i departed, and point i is where it
                       arrived, at timestep i + 1. The last point is x0; the noise that the first step departed from is not
                       stored. (FastVideo's own training takes the departures for the points' timesteps.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import torch
from torch import Tensor

from fvd.data.spec import DataSpec, FieldSpec, RawBatch
from fvd.errors import DataError
from fvd.rng import to_device

LATENTS, TIMESTEPS = "trajectory_latents", "trajectory_timesteps"
TOLERANCE = 5.0
"""Timesteps, of 1000: how far a stored point may be from the timestep that is asked for."""

AnySpec = TypeVar("AnySpec", bound=DataSpec)


def with_trajectories(spec: AnySpec) -> AnySpec:
    """``spec`` with the fields of a trajectory, which every sample must have then.
    Raises DataError for data without latents."""
    latents = next((field for field in spec.fields if field.source == "latents"), None)
    if latents is None:
        raise DataError("this family's data have no latents, and so no trajectories of them", cure="Use another family.")
    points = FieldSpec(name=LATENTS, axes=("S", *latents.axes), sizes=dict(latents.sizes), source="trajectory", on_host=True)
    timesteps = FieldSpec(name=TIMESTEPS, axes=("S",), sizes={}, source="trajectory", on_host=True)
    return replace(spec, fields=(*spec.fields, points, timesteps))


def timesteps_of_points(stored: Tensor) -> Tensor:
    """The timesteps of the points, in either labelling: [B, S] -> [B, S], float32, the last 0."""
    stored = stored.float()
    departures = torch.cat([stored[:, 1:], torch.zeros_like(stored[:, :1])], dim=1)
    return torch.where(stored[:, -1:] > 0, departures, stored)


def nearest_index(timesteps: Sequence[float], wanted: float) -> int:
    """Which of the timesteps is nearest."""
    return min(range(len(timesteps)), key=lambda index: abs(timesteps[index] - wanted))


def nearest_point(timesteps: Sequence[float], wanted: float, *, tolerance: float = TOLERANCE) -> int | None:
    """Which of the points is nearest to ``wanted``; None where the nearest is further than ``tolerance``."""
    index = nearest_index(timesteps, wanted)
    return index if abs(timesteps[index] - wanted) <= tolerance else None


@dataclass(frozen=True)
class Pairs:
    """x_t [B, C, T, H, W] at timesteps ``t`` [B] of a teacher's solutions, and the ends x0 of these. float32."""

    x_t: Tensor
    t: Tensor
    x0: Tensor


@dataclass(frozen=True)
class Trajectories:
    """Those of a batch, on the CPU. points: [B, S, C, T, H, W]. timesteps: [B, S], of the points; the last is 0."""

    points: Tensor
    timesteps: Tensor
    names: list[str]

    @classmethod
    def of(cls, batch: RawBatch) -> Self:
        """Raises DataError for a batch without them, and for timesteps that do not fit the points or do not descend."""
        if LATENTS not in batch.on_host or TIMESTEPS not in batch.on_host:
            raise DataError("the data hold no trajectories", cure="Make them with `fvd data pairs`.")
        points, stored = batch.on_host[LATENTS], batch.on_host[TIMESTEPS]
        names = [str(info.get("id", "?")) for info in batch.info]
        if points.shape[1] != stored.shape[1]:
            raise DataError(
                f"clip {names[0]!r} has {points.shape[1]} points and {stored.shape[1]} timesteps", cure="Make the pairs again."
            )
        timesteps = timesteps_of_points(stored)
        for name, row in zip(names, stored.float(), strict=True):
            if not bool((row[1:] < row[:-1]).all()):
                raise DataError(f"the timesteps of clip {name!r} do not descend: {_listed(row.tolist())}")
        return cls(points, timesteps, names)

    def require(self, wanted: Sequence[float]) -> None:
        """Raises DataError, which says what is stored, for a sample without a point near each of the timesteps ``wanted``."""
        for sample in range(len(self.names)):
            missing = [timestep for timestep in wanted if self._near(sample, timestep) is None]
            if missing:
                raise self._not_stored(sample, missing)

    def pairs(self, wanted: Sequence[float], *, device: torch.device) -> Pairs:
        """Of sample b the point nearest to timestep ``wanted[b]``, at the timestep that it has. Only these points go to
        ``device``. Raises DataError, which says what is stored, where none is near."""
        chosen = []
        for sample, timestep in enumerate(wanted):
            index = self._near(sample, timestep)
            if index is None:
                raise self._not_stored(sample, [timestep])
            chosen.append(index)
        rows = torch.arange(len(chosen)), torch.tensor(chosen)
        return Pairs(
            x_t=to_device(self.points[rows].float(), device),
            t=to_device(self.timesteps[rows], device),
            x0=to_device(self.points[:, -1].float(), device),
        )

    def _near(self, sample: int, wanted: float) -> int | None:
        """Among the points before the end."""
        stored = self.timesteps[sample, :-1].tolist()
        return nearest_point(stored, wanted) if stored else None

    def _not_stored(self, sample: int, wanted: Sequence[float]) -> DataError:
        stored = self.timesteps[sample, :-1].tolist()
        return DataError(
            f"no point of the trajectory of clip {self.names[sample]!r} is within {TOLERANCE:g} of timestep {_listed(wanted)}; "
            f"it has {_listed(stored)}",
            cure="Make pairs that have them all: `fvd data pairs --keep-timesteps T,T,...`.",
        )


def _listed(timesteps: Sequence[float]) -> str:
    return ", ".join(f"{timestep:g}" for timestep in timesteps) or "none"
