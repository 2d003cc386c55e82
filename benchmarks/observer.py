"""A plugin for benchmarks: writes ``marks.json`` into the run directory, a list with an entry for each step.

wall, cpu: seconds at the step's end, all its logging done; passes: samples through each role's networks in the step, in
batches; peak: resident memory so far, in the unit of ``ru_maxrss``.
"""

from __future__ import annotations

import json
import resource
import time
from collections import Counter
from typing import Any

import fvd

_passes: Counter[str] = Counter()
_marks: list[dict[str, Any]] = []


@fvd.hookimpl
def fvd_run_start(run: Any) -> None:
    for handle in run.roles:
        for module in handle.modules.values():
            module.register_forward_pre_hook(_counter(handle.name, run.config.training.train_batch_size))


def _counter(role: str, batch_size: int) -> Any:
    def count(module: object, inputs: tuple[Any, ...]) -> None:
        _passes[role] += inputs[0].shape[0] // batch_size

    return count


@fvd.hookimpl
def fvd_step_end(run: Any, step: Any) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _marks.append({"wall": time.perf_counter(), "cpu": time.process_time(), "passes": dict(_passes), "peak": peak})
    _passes.clear()


@fvd.hookimpl
def fvd_run_end(run: Any, outcome: Any) -> None:
    (run.run_dir.path / "marks.json").write_text(json.dumps(_marks), encoding="utf-8")
