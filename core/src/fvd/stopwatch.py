"""Where the time and the memory of a step go."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Wall-clock of one step after another. A step ends when its metrics are on the host, which waits for the device, so
    that the figures hold without an extra synchronisation."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._step_started = 0.0
        self._data_wait = 0.0

    def start_step(self) -> None:
        self._step_started = time.perf_counter()
        self._data_wait = 0.0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._data_wait += time.perf_counter() - started

    def end_step(self, samples: int) -> dict[str, float]:
        """perf/…: seconds a step, samples a second, share of the step spent waiting for data, peak memory in MiB."""
        seconds = max(time.perf_counter() - self._step_started, 1e-9)
        return {
            "perf/step_seconds": seconds,
            "perf/samples_per_second": samples / seconds,
            "perf/data_wait_share": self._data_wait / seconds,
            "perf/peak_memory_mib": self.peak_memory_mib(),
        }

    def peak_memory_mib(self) -> float:
        """Of the device in this step, or of the process so far where the device is the CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)
