"""What the benchmarks that train have in common: run files for tiny Wan, the observer plugin, and what it saw."""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import FOLDER, RSS_UNITS_PER_MIB, Usage, measure
from inputs import Size

from fvd.testing import fake_dist

Kind = tuple[tuple[str, int], ...]
"""Passes of each role in a step: what tells one kind of step from another."""
DMD2_ROLES = {"student": True, "teacher": False, "critic": True}


@dataclass
class Runs:
    """What was seen of several runs of one thing. Lists have an entry a run.

    start: CPU seconds from the process's start to the end of the first step. step_seconds, step_cpu: of all runs, by kind; the
    first step is left out. peak_mib: resident memory until the last step's end; whole_peak_mib: until the process's end.
    step_memory_mib: how far the steps' peak is above what was resident before the first one, where that is known.
    """

    start: list[float] = field(default_factory=list)
    step_seconds: dict[Kind, list[float]] = field(default_factory=lambda: defaultdict(list))
    step_cpu: dict[Kind, list[float]] = field(default_factory=lambda: defaultdict(list))
    peak_mib: list[float] = field(default_factory=list)
    whole_peak_mib: list[float] = field(default_factory=list)
    step_memory_mib: list[float] = field(default_factory=list)

    def add(self, marks: Sequence[Mapping[str, Any]], usage: Usage) -> None:
        before, first, *_, last = marks if len(marks) > 2 else [*marks, marks[-1]]
        self.start.append(first["cpu"])
        for earlier, later in pairwise(marks[1:]):
            self.step_seconds[kind_of(later["passes"])].append(later["wall"] - earlier["wall"])
            self.step_cpu[kind_of(later["passes"])].append(later["cpu"] - earlier["cpu"])
        peak = last["peak"] / RSS_UNITS_PER_MIB
        self.peak_mib.append(peak)
        self.whole_peak_mib.append(usage.peak_mib)
        if "resident" in before:
            self.step_memory_mib.append(peak - before["resident"])

    def passes_each(self, role: str) -> float:
        """Forwards of a role in a step, as counted over all steps but the first ones."""
        counts = [dict(kind).get(role, 0) for kind, times in self.step_seconds.items() for _ in times]
        return _mean(counts)


def expected(
    times: Mapping[Kind, list[float]],
    *,
    student_share: float | None,
    kinds: set[Kind] | None = None,
    of_kind: Callable[[Sequence[float]], float] = min,
) -> float:
    """Of a step, from one time of each kind, the least: exits of the rollout are equally likely, and the student moves, which
    the teacher's passes tell, in ``student_share`` of the steps (None: no kind is told apart)."""
    least = {kind: of_kind(seen) for kind, seen in times.items() if kinds is None or kind in kinds}
    if student_share is None:
        return _mean(least.values())
    student, other = ([time for kind, time in least.items() if ("teacher" in dict(kind)) is moves] for moves in (True, False))
    return student_share * _mean(student) + (1 - student_share) * _mean(other)


def _mean(values: Any) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def kind_of(passes: Mapping[str, int]) -> Kind:
    return tuple(sorted((role, count) for role, count in passes.items() if count))


def write_inputs(folder: Path, size: str) -> Path:
    measure([sys.executable, str(FOLDER / "inputs.py"), str(folder), size])
    return folder


def run_document(
    inputs: Path, size: Size, *, method: str, roles: Mapping[str, bool], steps: int, method_config: Mapping[str, Any]
) -> dict[str, Any]:
    """A run file for what `inputs.write` has written, with the optimizers of `by_hand`. ``output_dir`` is to be set."""
    document: dict[str, Any] = {
        "recipe": {"family": "wan", "method": method},
        "roles": {name: {"path": str(inputs / "model"), "trainable": trained} for name, trained in roles.items()},
        "training": {
            "output_dir": "to be set",
            "data_path": str(inputs / "data"),
            "max_train_steps": steps,
            "train_batch_size": size.batch_size,
            "learning_rate": 1e-5,
            "betas": [0.9, 0.999],
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
        },
        "pipeline_config": {"flow_shift": 3},
        "method_config": method_config,
    }
    if method == "dmd2":
        document["roles"]["student"]["ema"] = {"decay": 0.99, "start_step": 0}
    return document


def save_run_file(path: Path, document: Mapping[str, Any]) -> Path:
    """YAML is a superset of JSON."""
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def fvd_command(run_file: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "fvd.cli.main", "run", str(run_file), "--set", f"training.output_dir={out}"]


def observed(
    command: Sequence[str], out: Path, site: Path, environment: Mapping[str, str] | None = None
) -> tuple[list[dict[str, Any]], Usage]:
    """Run a command that leaves its marks in ``out``, with the observer, which is put into ``site``, among the plugins."""
    source = (FOLDER / "observer.py").read_text(encoding="utf-8")
    fake_dist(site, "bench-observer", entry_points={"observer": "bench_observer"}, modules={"bench_observer": source})
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    usage = measure(command, environment={"PYTHONPATH": path, **(environment or {})})
    return json.loads((out / "marks.json").read_text(encoding="utf-8")), usage
