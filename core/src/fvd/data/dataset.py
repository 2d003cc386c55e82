"""What a dataset kind gives to the loader: samples, in chunks that are cheap to read at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


@dataclass
class Sample:
    """One sample: tensors by field name, without a batch axis, on the CPU; and its metadata (id, caption, …)."""

    tensors: dict[str, Tensor]
    info: dict[str, object] = field(default_factory=dict)


class ChunkedDataset(Protocol):
    """Opened data. A dataset kind's ``target`` is ``(sources, spec, *, needs_latents) -> ChunkedDataset``, where
    sources are (folder, repeats) and everything that can be checked without reading tensors is checked at once.

    chunk_sizes: number of samples of each chunk (a row group, a shard); a repeated source repeats its chunks.
    shapes: for each field that every sample has, the sizes of the axes on which all samples agree.
    sample_bytes: mean size of a sample's tensors as `read_chunk` returns them. It bounds how many samples are held for
        shuffling, so it must follow from the data alone.
    """

    @property
    def chunk_sizes(self) -> list[int]: ...

    @property
    def shapes(self) -> Mapping[str, Mapping[str, int]]: ...

    @property
    def sample_bytes(self) -> int: ...

    def sample_ids(self, index: int) -> list[str]:
        """A name for each sample of one chunk, in order, without reading tensors: the same wherever the sample is met again (in
        a repeated source, in another order of folders), so that what is held out of training is nowhere trained on."""
        ...

    def read_chunk(self, index: int) -> list[Sample]:
        """All samples of one chunk, in order. Called from several threads. Raises DataError that names file, row and
        clip for a tensor that cannot be read or is not finite."""
        ...
