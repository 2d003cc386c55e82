"""The held-out loss: what a method loses on samples that it is not trained on, by noise level."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fvd.adapters import Batch
from fvd.data.dataset import Sample
from fvd.data.held_out import HeldOutSamples
from fvd.data.loader import collate
from fvd.errors import FvdError
from fvd.methods import Method
from fvd.metrics import timestep_bins
from fvd.rng import randn_per_sample, seeded_generator
from fvd.validation.base import ValidationStopped, never_stopped
from fvd.validation.weights import Weights, in_use, weights_to_show

BINS = 5
LOSSES: dict[Weights, str] = {"raw": "validation/loss", "ema": "validation/ema/loss"}
"""Names of the metrics; those of the bins stand under them, ``validation/loss/t_0_200``."""


class HeldOutLoss:
    """`Method.held_out_loss` of every sample at the midpoint of each of `BINS` equal parts of the schedule.

    The noise of a sample and bin is a function of the sample's id: the same in every validation, for raw weights and averaged
    ones, in every run on these data. Nothing of training is drawn from or changed.
    """

    def __init__(self, method: Method, samples: HeldOutSamples, device: torch.device) -> None:
        self._method = method
        self._samples = samples
        self._device = device
        self._handle = method.roles[method.sampling_plan(method.run).role]
        ranges = timestep_bins(method.adapter.num_train_timesteps, BINS)
        self.midpoints = {name: (low + high) / 2 for name, (low, high) in ranges.items()}

    @property
    def metric(self) -> str:
        """The first metric of every evaluation."""
        return LOSSES[self._weights()[0]]

    @torch.no_grad()
    def evaluate(self, stop_requested: Callable[[], bool] = never_stopped) -> dict[str, float]:
        """``validation/loss``, ``validation/loss/t_0_200``, …, and ``validation/ema/loss…`` of averaged weights.

        Raises FvdError for a method that has no held-out loss, and ValidationStopped where ``stop_requested`` says so
        between two batches.
        """
        sums = {weights: torch.zeros(BINS, dtype=torch.float64, device=self._device) for weights in self._weights()}
        for ids, batch in self._batches():
            if stop_requested():
                raise ValidationStopped
            noises = [self._noise(name, ids, batch) for name in self.midpoints]
            for weights, total in sums.items():
                with in_use(self._handle, weights):
                    losses = [self._losses(batch, *at) for at in zip(self.midpoints.values(), noises, strict=True)]
                total += torch.stack(losses).double().sum(dim=1)
        metrics: dict[str, float] = {}
        for weights, total in sums.items():
            metrics |= self._named(weights, (total / len(self._samples.ids)).tolist())
        return metrics

    def describe(self, metrics: Mapping[str, float]) -> str:
        """One line for the log."""
        said = []
        for weights in self._weights():
            bins = " ".join(f"{metrics[f'{LOSSES[weights]}/{name}']:.4g}" for name in self.midpoints)
            said.append(f"{weights} {metrics[LOSSES[weights]]:.4g} (from low to high noise {bins})")
        return f"held-out loss of {len(self._samples.ids)} samples: {'; '.join(said)}"

    def _weights(self) -> list[Weights]:
        return weights_to_show(self._handle, self._method.run.training.validation_weights)

    def _batches(self) -> Iterator[tuple[list[str], Batch]]:
        run, spec = self._method.run, self._samples.spec
        for named in self._samples.batches(run.training.train_batch_size):
            samples: Sequence[Sample] = [sample for _, sample in named]
            dropped = torch.zeros(len(samples), dtype=torch.bool)
            raw = collate(samples, spec, dropped=dropped, latent_frames=run.training.num_latent_t)
            batch = self._method.adapter.prepare_batch(raw.to(self._device), latents_source="data")
            yield [id for id, _ in named], batch

    def _noise(self, bin_name: str, ids: Sequence[str], batch: Batch) -> Tensor:
        generators = [seeded_generator("validation", id, bin_name) for id in ids]
        return randn_per_sample(batch.latents.shape[1:], generators, device=self._device)

    def _losses(self, batch: Batch, timestep: float, noise: Tensor) -> Tensor:
        t = torch.full((batch.batch_size,), timestep, device=self._device)
        losses = self._method.held_out_loss(batch, t, noise)
        if losses is None:
            raise FvdError(
                f"the method {self._method.run.recipe.method} has no loss to compute on held-out samples",
                cure="Remove training.validation_split and training.validation_data_path.",
            )
        return losses

    def _named(self, weights: Weights, bins: list[float]) -> dict[str, float]:
        by_bin = {f"{LOSSES[weights]}/{name}": value for name, value in zip(self.midpoints, bins, strict=True)}
        return {LOSSES[weights]: sum(bins) / BINS, **by_bin}
