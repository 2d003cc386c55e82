"""A plugin for benchmarks: writes ``marks.json`` into the run directory, an entry before the first step and one after each.

wall, cpu: seconds, all logging of the step done; passes: samples through each role's networks in the step, in batches; peak:
resident memory so far, in the unit of ``ru_maxrss``; resident: at the moment, in MiB.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import fvd

_passes: Counter[str] = Counter()
_marks: list[dict[str, Any]] = []


def _mark() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    _marks.append(
        {
            "wall": time.perf_counter(),
            "cpu": time.process_time(),
            "passes": dict(_passes),
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "resident": pages * os.sysconf("SC_PAGESIZE") / 2**20,
        }
    )
    _passes.clear()


@fvd.hookimpl
def fvd_run_start(run: Any) -> None:
    for handle in run.roles:
        for module in handle.modules.values():
            module.register_forward_pre_hook(_counter(handle.name, run.config.training.train_batch_size))
    _mark()


def _counter(role: str, batch_size: int) -> Any:
    def count(module: object, inputs: tuple[Any, ...]) -> None:
        _passes[role] += inputs[0].shape[0] // batch_size

    return count


@fvd.hookimpl
def fvd_step_end(run: Any, step: Any) -> None:
    _mark()


@fvd.hookimpl
def fvd_run_end(run: Any, outcome: Any) -> None:
    (run.run_dir.path / "marks.json").write_text(json.dumps(_marks), encoding="utf-8")
