"""In which order samples are visited: a function of the data, the seed and the epoch, so that a resume needs no state but
a position.

Samples are numbered through all chunks. An epoch shuffles the chunks, takes them in windows of at least `window_samples`
samples, and shuffles the samples inside each window: close to a full shuffle, and every chunk is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fvd.rng import seeded_generator

WINDOW_SAMPLES = 256
WINDOW_BYTES = 2**30


def window_samples(sample_bytes: int) -> int:
    """How many samples of that mean size are shuffled together: up to `WINDOW_SAMPLES` in up to `WINDOW_BYTES`."""
    return max(1, min(WINDOW_SAMPLES, WINDOW_BYTES // max(1, sample_bytes)))


def epoch_order(chunk_sizes: Sequence[int], *, seed: int, epoch: int, window_size: int = WINDOW_SAMPLES) -> Tensor:
    """A permutation of all sample numbers, int64 [N]."""
    generator = seeded_generator("data order", seed, epoch)
    sizes = torch.tensor(chunk_sizes, dtype=torch.int64)
    starts = sizes.cumsum(0) - sizes
    shuffled = torch.randperm(len(sizes), generator=generator)
    windows = []
    window: list[Tensor] = []
    held = 0
    for chunk in shuffled.tolist():
        window.append(torch.arange(int(starts[chunk]), int(starts[chunk] + sizes[chunk])))
        held += int(sizes[chunk])
        if held >= window_size:
            windows.append(torch.cat(window))
            window, held = [], 0
    if window:
        windows.append(torch.cat(window))
    return torch.cat([samples[torch.randperm(len(samples), generator=generator)] for samples in windows])


def dropout_draws(samples: int, *, seed: int, epoch: int, rate: float) -> Tensor:
    """Which samples (by number) lose their conditioning in this epoch: [N] bool, each with probability ``rate``."""
    uniform = torch.rand(samples, generator=seeded_generator("conditioning dropout", seed, epoch))
    return uniform < rate


@dataclass(frozen=True, slots=True)
class Visit:
    """One sample of the stream: where it is, and whether its conditioning is dropped this time."""

    epoch: int
    chunk: int
    row: int
    dropped: bool


def epoch_visits(
    chunk_sizes: Sequence[int],
    *,
    seed: int,
    epoch: int,
    position: int,
    dropout_rate: float,
    window_size: int = WINDOW_SAMPLES,
    held_out: Tensor | None = None,
) -> list[Visit]:
    """The visits of an epoch from ``position`` on; without the samples that are ``held_out`` [N] of training."""
    order = epoch_order(chunk_sizes, seed=seed, epoch=epoch, window_size=window_size)
    if held_out is not None:
        order = order[~held_out[order]]
    order = order[position:]
    dropped = dropout_draws(sum(chunk_sizes), seed=seed, epoch=epoch, rate=dropout_rate)[order]
    columns = zip(places(order, chunk_sizes), dropped.tolist(), strict=True)
    return [Visit(epoch, chunk, row, drop) for (chunk, row), drop in columns]


def places(samples: Tensor, chunk_sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(chunk, row) of each of the sample numbers."""
    ends = torch.tensor(chunk_sizes, dtype=torch.int64).cumsum(0)
    chunks = torch.searchsorted(ends, samples, right=True)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
    return list(zip(chunks.tolist(), (samples - starts[chunks]).tolist(), strict=True))


def rows_by_chunk(visits: Sequence[Visit]) -> dict[int, set[int]]:
    """Which rows of each chunk are visited; chunks by first visit."""
    rows: dict[int, set[int]] = {}
    for visit in visits:
        rows.setdefault(visit.chunk, set()).add(visit.row)
    return rows
