"""What the trainer costs: `fvd run` against loops written by hand (`by_hand/`), on tiny Wan, on the CPU, one thread each.

    python benchmarks/trainer_overhead.py [--rounds 3] [--steps 40] [--sizes 40k 5m] [--check]

Both do the same: the same files of model and data, the same network class, batch, optimizer, clipping, average of weights and
passes (which are counted), and both log every step and save at the end. They are processes of their own, in turns, so that a
busy machine slows both alike; the first of them may have bytecode to write. Compared are

- CPU seconds (user and system, all threads) from the process's start to the end of the first step;
- seconds from one step's end to the next one's: the least of each kind of step. Steps of DMD2 differ in whether the student
  moves and in where the rollout ends; the mean over the kinds is compared, as often as each is to be expected. Beside it the
  CPU time, from the median of each kind, which a busy machine disturbs less;
- peak resident memory until the last step's end, and of the whole process.

``--check`` exits 1 above a target.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

from common import FOLDER, machine, print_table, verdict
from inputs import SIZES
from runs import DMD2_ROLES, Runs, expected, fvd_command, observed, run_document, save_run_file, write_inputs

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
    "finetune": ({"student": True}, {}),
    "dmd2": (DMD2_ROLES, {"generator_update_interval": STUDENT_EVERY, "real_score_guidance_scale": 3.5}),
}
"""Roles, and method_config."""


def commands(folder: Path, method: str, size: str, steps: int, turn: int) -> dict[str, tuple[list[str], Path]]:
    """Each candidate's command, and the folder that it writes into."""
    roles, method_config = METHODS[method]
    document = run_document(folder, SIZES[size], method=method, roles=roles, steps=steps, method_config=method_config)
    run_file = save_run_file(folder / f"{method}.yaml", document)
    outs = folder / f"{method}-fvd-{turn}", folder / f"{method}-by-hand-{turn}"
    by_hand = [sys.executable, str(FOLDER / f"by_hand/{method}.py"), str(folder / "model"), str(folder / "data"), str(outs[1])]
    by_hand += ["--steps", str(steps), "--batch-size", str(SIZES[size].batch_size)]
    if method == "dmd2":
        by_hand += ["--student-every", str(STUDENT_EVERY)]
    return {"fvd": (fvd_command(run_file, outs[0]), outs[0]), "by hand": (by_hand, outs[1])}


def compare(folder: Path, method: str, size: str, *, rounds: int, steps: int) -> dict[str, Runs]:
    found = {"fvd": Runs(), "by hand": Runs()}
    for turn in range(rounds):
        for name, (command, out) in commands(folder, method, size, steps, turn).items():
            found[name].add(*observed(command, out, folder / "site"))
    return found


def report(method: str, size: str, found: dict[str, Runs]) -> bool:
    """Print the table of one comparison. Returns whether it keeps the targets."""
    fvd, by_hand = found["fvd"], found["by hand"]
    kinds = set(fvd.step_seconds) & set(by_hand.step_seconds)
    if not kinds:
        sys.exit(f"{method}: they make different passes: {sorted(fvd.step_seconds)} and {sorted(by_hand.step_seconds)}")
    share = 1 / STUDENT_EVERY if method == "dmd2" else None
    step = tuple(expected(runs.step_seconds, student_share=share, kinds=kinds) for runs in (fvd, by_hand))
    step_cpu = tuple(expected(runs.step_cpu, student_share=share, kinds=kinds, of_kind=median) for runs in (fvd, by_hand))
    start = min(fvd.start), min(by_hand.start)
    memory = min(fvd.peak_mib), min(by_hand.peak_mib)
    whole = min(fvd.whole_peak_mib), min(by_hand.whole_peak_mib)
    if size == "40k":
        of_step, unit = (1e3 * (step[0] - step[1]), STEP_MILLISECONDS_TARGET), " ms more"
    else:
        of_step, unit = (step[0] / step[1], STEP_RATIO_TARGET), ""
    targets = [of_step, (start[0] - start[1], START_TARGET)]
    targets += [(pair[0] / pair[1], MEMORY_TARGET) for pair in (memory, whole)]
    left_out = len(set(fvd.step_seconds) | set(by_hand.step_seconds)) - len(kinds)
    print(f"### {method}, {size} parameters\n")
    print(
        f"Steps of {len(kinds)} kinds" + (f"; {left_out} kinds seen in one of the two are left out" if left_out else "") + ".\n"
    )
    print_table(
        ("", "fvd", "by hand", "difference", "ratio", "target"),
        [
            ("a step, ms", *_figures(step, 1e3), verdict(*of_step, unit)),
            ("CPU of a step, ms", *_figures(step_cpu, 1e3), ""),
            ("CPU to the first step, s", *_figures(start), verdict(*targets[1], " s more")),
            ("peak memory of training, MiB", *_figures(memory), verdict(*targets[2])),
            ("peak memory with saving, MiB", *_figures(whole), verdict(*targets[3])),
        ],
    )
    return all(figure <= target for figure, target in targets)


def _figures(pair: tuple[float, ...], scale: float = 1) -> list[str]:
    fvd, by_hand = pair
    return [f"{scale * fvd:.2f}", f"{scale * by_hand:.2f}", f"{scale * (fvd - by_hand):+.2f}", f"{fvd / by_hand:.3f}"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Cost of the trainer.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--sizes", nargs="+", choices=("40k", "5m"), default=["40k", "5m"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--check", action="store_true", help="exit 1 above a target")
    options = parser.parse_args()
    kept = []
    with tempfile.TemporaryDirectory() as name:
        for size in options.sizes:
            folder = write_inputs(Path(name, size), size)
            for method in options.methods:
                found = compare(folder, method, size, rounds=options.rounds, steps=options.steps)
                kept.append(report(method, size, found))
    print(f"{machine()}; minimum of {options.rounds} runs of {options.steps} steps")
    return int(options.check and not all(kept))


if __name__ == "__main__":
    sys.exit(main())
