"""Reading chunks in background threads, in the order in which the stream of samples will need them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

from fvd.data.dataset import ChunkedDataset, Sample
from fvd.data.order import Visit, rows_by_chunk

ChunkKey = tuple[int, int]
"""(epoch, chunk): a chunk is read once each epoch."""


class ReadAhead:
    """Iterates over ``(visit, sample)`` for the visits of endless epochs.

    Holds at most a window of ``window_size`` samples and, beyond it, one chunk a thread: as samples are consumed, the next
    window is read. Memory is not pinned.
    ``threads`` = 0 reads on demand in the caller's thread. An error of a thread is raised where its chunk is needed.
    """

    def __init__(self, dataset: ChunkedDataset, epochs: Iterator[list[Visit]], *, threads: int, window_size: int) -> None:
        self._dataset = dataset
        self._epochs = epochs
        self._planned: deque[list[Visit]] = deque()
        self._schedule = self._plan()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="fvd-data") if threads else None
        window = min(window_size, sum(dataset.chunk_sizes))
        self._limit = window + (1 + threads) * max(dataset.chunk_sizes) if threads else 0
        self._pending: dict[ChunkKey, Callable[[], dict[int, Sample]]] = {}
        self._resident = 0

    def __iter__(self) -> Generator[tuple[Visit, Sample], None, None]:
        try:
            while True:
                if not self._planned:
                    self._request_next()
                for visit in self._planned[0]:
                    self._request_ahead()
                    yield visit, self._take(visit)
                self._planned.popleft()
        finally:
            if self._executor is not None:
                self._executor.shutdown(wait=True, cancel_futures=True)

    def _plan(self) -> Iterator[tuple[ChunkKey, set[int]]]:
        for visits in self._epochs:
            self._planned.append(visits)
            for chunk, rows in rows_by_chunk(visits).items():
                yield (visits[0].epoch, chunk), rows

    def _request_next(self) -> None:
        key, wanted = next(self._schedule)
        if self._executor is not None:
            self._pending[key] = self._executor.submit(self._read, key[1], wanted).result
        else:
            rows = self._read(key[1], wanted)
            self._pending[key] = lambda: rows
        self._resident += len(wanted)

    def _request_ahead(self) -> None:
        while self._resident + max(self._dataset.chunk_sizes) <= self._limit:
            self._request_next()

    def _read(self, chunk: int, wanted: set[int]) -> dict[int, Sample]:
        """Without the rows that are held out of training, or that a resumed epoch has used before."""
        return {row: sample for row, sample in enumerate(self._dataset.read_chunk(chunk)) if row in wanted}

    def _take(self, visit: Visit) -> Sample:
        key = (visit.epoch, visit.chunk)
        while key not in self._pending:
            self._request_next()
        rows = self._pending[key]()
        sample = rows.pop(visit.row)
        self._resident -= 1
        if not rows:
            del self._pending[key]
        return sample
