"""What the trainer costs: `fvd run` against loops written by hand (`by_hand/`), on tiny Wan, on the CPU, one thread each.

    python benchmarks/trainer_overhead.py [--rounds 3] [--steps 40] [--sizes 40k 5m] [--check]

Both do the same: the same files of model and data, the same network class, batch, optimizer, clipping and passes (which are
counted), and both log every step and save at the end. They are processes of their own, in turns, so that a busy machine
slows both alike. Compared are

- CPU seconds (user and system, all threads) from the process's start to the end of the first step;
- seconds of a step, from one step's end to the next one's: the least of its kind. Steps of DMD2 differ in the student's step
  and in where the rollout ends, which passes tell; a mean over the kinds is compared, as often as each is to be expected;
- peak resident memory until the last step's end, and of the whole process.

``--check`` exits 1 above a target.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common import FOLDER, Usage, machine, measure, print_table, verdict
from inputs import SIZES, Size

from fvd.testing import fake_dist

START_TARGET = 1.0
"""CPU seconds more than by hand, from the process's start to the first step."""
MEMORY_TARGET = 1.15
STEP_RATIO_TARGET = 1.03
"""Of a network of 5 M parameters."""
STEP_MILLISECONDS_TARGET = 2.0
"""More than by hand, of a network of 40 k."""
STUDENT_EVERY = 2
"""DMD2's student moves at every so many-th step: often, so that a short run has all kinds of step."""
METHODS = {
    "finetune": {"roles": {"student": True}, "method_config": {}},
    "dmd2": {
        "roles": {"student": True, "teacher": False, "critic": True},
        "method_config": {
            "dmd_denoising_steps": [1000, 750, 500, 250],
            "warp_denoising_step": True,
            "generator_update_interval": STUDENT_EVERY,
            "real_score_guidance_scale": 3.5,
        },
    },
}

Kind = tuple[tuple[str, int], ...]
"""Passes of each role: what tells one kind of step from another."""


@dataclass
class Runs:
    """The runs of one candidate."""

    start: list[float] = field(default_factory=list)
    steps: dict[Kind, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: list[float] = field(default_factory=list)
    whole_memory: list[float] = field(default_factory=list)

    def add(self, marks: list[dict[str, object]], usage: Usage) -> None:
        self.start.append(float(marks[0]["cpu"]))
        for earlier, later in zip(marks, marks[1:], strict=False):
            self.steps[kind_of(later["passes"])].append(float(later["wall"]) - float(earlier["wall"]))
        self.memory.append(float(marks[-1]["peak"]) / (2**20 if sys.platform == "darwin" else 2**10))
        self.whole_memory.append(usage.peak_mib)

    def step_seconds(self, kinds: set[Kind]) -> float:
        """The mean over ``kinds`` of the least of each: exit steps are equally likely, and so are steps with the student's
        and without."""
        return sum(min(self.steps[kind]) for kind in kinds) / len(kinds)


def kind_of(passes: Mapping[str, int]) -> Kind:
    return tuple(sorted((role, count) for role, count in passes.items() if count))


def write_run_file(folder: Path, method: str, size: Size, steps: int) -> Path:
    """YAML is a superset of JSON."""
    chosen = METHODS[method]
    document = {
        "recipe": {"family": "wan", "method": method},
        "roles": {name: {"path": str(folder / "model"), "trainable": trained} for name, trained in chosen["roles"].items()},
        "training": {
            "output_dir": "to be set",
            "data_path": str(folder / "data"),
            "max_train_steps": steps,
            "train_batch_size": size.batch_size,
            "learning_rate": 1e-5,
        },
        "pipeline_config": {"flow_shift": 3},
        "method_config": chosen["method_config"],
    }
    path = folder / f"{method}.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def commands(folder: Path, method: str, size: Size, steps: int) -> dict[str, list[str]]:
    """Without the folder that each is to write into."""
    run_file = write_run_file(folder, method, size, steps)
    by_hand = [sys.executable, str(FOLDER / f"by_hand/{method}.py"), "--steps", str(steps), "--batch-size", str(size.batch_size)]
    if method == "dmd2":
        by_hand += ["--student-every", str(STUDENT_EVERY)]
    return {
        "fvd": [sys.executable, "-m", "fvd.cli.main", "run", str(run_file), "--set"],
        "by hand": [*by_hand, str(folder / "model"), str(folder / "data")],
    }


def compare(folder: Path, method: str, size: Size, *, rounds: int, steps: int) -> dict[str, Runs]:
    environment = {"PYTHONPATH": os.pathsep.join([str(install_observer(folder / "site")), *filter(None, [os.environ.get("PYTHONPATH")])])}
    found: dict[str, Runs] = {"fvd": Runs(), "by hand": Runs()}
    for turn in range(rounds + 1):
        for name, command in commands(folder, method, size, 2 if turn == 0 else steps).items():
            out = folder / f"{method}-{name.replace(' ', '-')}-{turn}"
            place = f"training.output_dir={out}" if name == "fvd" else str(out)
            usage = measure([*command, place], environment=environment)
            if turn > 0:  # the first one writes bytecode
                found[name].add(json.loads((out / "marks.json").read_text(encoding="utf-8")), usage)
    return found


def install_observer(folder: Path) -> Path:
    source = (FOLDER / "observer.py").read_text(encoding="utf-8")
    return fake_dist(folder, "bench-observer", entry_points={"observer": "bench_observer"}, modules={"bench_observer": source})


def report(method: str, size_name: str, found: dict[str, Runs]) -> bool:
    """Print the table of one comparison. Returns whether it keeps the targets."""
    fvd, by_hand = found["fvd"], found["by hand"]
    kinds = set(fvd.steps) & set(by_hand.steps)
    if not kinds:
        sys.exit(f"{method}: the two make different passes: {sorted(fvd.steps)} and {sorted(by_hand.steps)}")
    missing = (set(fvd.steps) | set(by_hand.steps)) - kinds
    step = fvd.step_seconds(kinds), by_hand.step_seconds(kinds)
    start = min(fvd.start), min(by_hand.start)
    memory = min(fvd.memory), min(by_hand.memory)
    whole = min(fvd.whole_memory), min(by_hand.whole_memory)
    ratio, milliseconds = step[0] / step[1], 1e3 * (step[0] - step[1])
    small = size_name == "40k"
    targets = [
        (milliseconds, STEP_MILLISECONDS_TARGET) if small else (ratio, STEP_RATIO_TARGET),
        (start[0] - start[1], START_TARGET),
        (memory[0] / memory[1], MEMORY_TARGET),
        (whole[0] / whole[1], MEMORY_TARGET),
    ]
    step_verdict = verdict(*targets[0], " ms more") if small else verdict(*targets[0])
    print(f"{method}, {size_name} parameters, {len(kinds)} kinds of step" + (f", {len(missing)} left out" if missing else ""))
    print()
    print_table(
        ("", "fvd", "by hand", "difference", "ratio", "target"),
        [
            ("a step, ms", *_figures(step, 1e3), step_verdict),
            ("CPU to the first step, s", *_figures(start), verdict(*targets[1], " s more")),
            ("peak memory of training, MiB", *_figures(memory), verdict(*targets[2])),
            ("peak memory with saving, MiB", *_figures(whole), verdict(*targets[3])),
        ],
    )
    return all(figure <= target for figure, target in targets)


def _figures(pair: tuple[float, float], scale: float = 1) -> list[str]:
    fvd, by_hand = pair
    return [f"{scale * fvd:.2f}", f"{scale * by_hand:.2f}", f"{scale * (fvd - by_hand):+.2f}", f"{fvd / by_hand:.3f}"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Cost of the trainer.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--check", action="store_true", help="exit 1 above a target")
    options = parser.parse_args()
    kept = []
    with tempfile.TemporaryDirectory() as name:
        for size in options.sizes:
            folder = Path(name, size)
            measure([sys.executable, str(FOLDER / "inputs.py"), str(folder), size])
            for method in options.methods:
                found = compare(folder, method, SIZES[size], rounds=options.rounds, steps=options.steps)
                kept.append(report(method, size, found))
    print(machine())
    return int(options.check and not all(kept))


if __name__ == "__main__":
    sys.exit(main())
