"""Samples that are not trained on: which, and how they are read for the held-out loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fvd.data.dataset import ChunkedDataset, Sample
from fvd.data.order import places
from fvd.data.spec import DataSpec
from fvd.errors import DataError
from fvd.rng import derive_seed

_SEEDS = 2**63
"""`derive_seed` is uniform below this."""


def split_off(dataset: ChunkedDataset, *, seed: int, share: float) -> Tensor:
    """Which samples are held out of training, by number: [N] bool, each id with probability ``share``.

    A function of the ids and the seed alone: neither a resume nor more data changes it for any sample, and all copies of one
    are on the same side. Raises DataError where nothing would be held out, or nothing be left.
    """
    ids = _all_ids(dataset)
    chosen = {id: derive_seed("validation split", seed, id) < share * _SEEDS for id in dict.fromkeys(ids)}
    held_out = torch.tensor([chosen[id] for id in ids])
    if not held_out.any() or held_out.all():
        fate = "leaves no sample to train on" if held_out.any() else "holds no sample out"
        raise DataError(
            f"training.validation_split {share:g} of {len(ids)} samples (with {len(chosen)} different ids) {fate}",
            cure="Choose another share, or hold out data of your own in training.validation_data_path.",
        )
    return held_out


def _all_ids(dataset: ChunkedDataset) -> list[str]:
    return [id for chunk in range(len(dataset.chunk_sizes)) for id in dataset.sample_ids(chunk)]


@dataclass(frozen=True)
class HeldOutSamples:
    """Samples of a dataset, by chunk and row in reading order; each with its id."""

    dataset: ChunkedDataset
    spec: DataSpec
    ids: dict[tuple[int, int], str]

    @classmethod
    def choose(cls, dataset: ChunkedDataset, spec: DataSpec, count: int, *, among: Tensor | None = None) -> Self:
        """``count`` samples at most of different ids; the same for equal ids. among: [N] bool, default all."""
        ids = _all_ids(dataset)
        numbers = range(len(ids)) if among is None else among.nonzero().flatten().tolist()
        first_with_id: dict[str, int] = {}
        for number in numbers:
            first_with_id.setdefault(ids[number], number)
        names = sorted(first_with_id, key=lambda id: derive_seed("validation samples", id))[:count]
        chosen = sorted(first_with_id[name] for name in names)
        where = places(torch.tensor(chosen, dtype=torch.int64), dataset.chunk_sizes)
        return cls(dataset, spec, {place: ids[number] for place, number in zip(where, chosen, strict=True)})

    def batches(self, batch_size: int) -> Iterator[Sequence[tuple[str, Sample]]]:
        """All of them with their ids, always in one order, read anew."""
        batch: list[tuple[str, Sample]] = []
        for chunk in dict.fromkeys(chunk for chunk, _ in self.ids):
            rows = self.dataset.read_chunk(chunk)
            for row, sample in enumerate(rows):
                if (chunk, row) in self.ids:
                    batch.append((self.ids[chunk, row], sample))
                if len(batch) == batch_size:
                    yield batch
                    batch = []
        if batch:
            yield batch
