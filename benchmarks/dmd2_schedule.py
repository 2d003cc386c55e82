"""What DMD2's schedule saves: fvd's defaults against the preset ``fastvideo``, 4 steps, rollouts simulated, on tiny Wan, one
thread each.

    python benchmarks/dmd2_schedule.py [--rounds 3] [--steps 40] [--check]

The preset does as that system does: each loss has a rollout of its own, a rollout always goes down the whole ladder, the
teacher always makes an unconditional pass, and on the student's steps both losses' graphs are alive together. Both are our own
code, so that only the schedule differs. In forwards, with a backward as two, a cycle of one student update and k critic updates
at 4 steps costs

- fvd: k (1 + 1.5) forwards of rollouts that end early, and 2 more for the student's backward; 1 teacher forward, or 2 where it
  is guided; 1 of the critic for the student's loss; 3 k of the critic's own. k = 5, guided: 32.5; k = 1, unguided: 9.5.
- fastvideo: k + 1 rollouts of 4, and 2 for the backward; 2; 1; 3 k. 44 and 16.

Time is the expected one of a step from the least of each kind of step (exits are equally likely); beside it CPU time, from the
median of each kind, which a busy machine disturbs less. Memory is the steps' peak above what was resident before the first one
(weights are, optimizer states are not), at a size whose activations outweigh its weights, with an allocator that gives freed
tensors back, as it does by itself with tensors of real sizes: resident is then what is in use. (Left alone, glibc keeps the
small blocks of this size, and the ratio was 0.86 in one run.) ``--check`` exits 1 above a target.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from common import machine, print_table, verdict
from inputs import SIZES
from runs import DMD2_ROLES, Runs, expected, fvd_command, observed, run_document, save_run_file, write_inputs

LADDER_STEPS = 4
MEMORY_TARGET = 0.8
MEMORY_STEPS = 4
RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""glibc maps larger blocks one by one; by itself it raises the threshold to 32 MiB once such blocks have been freed."""


@dataclass(frozen=True)
class Case:
    """interval: critic updates per student update. guidance: in the offset convention, 0 = none."""

    interval: int
    guidance: float
    target: float

    @property
    def title(self) -> str:
        return f"interval {self.interval}, " + (f"guidance {self.guidance:g}" if self.guidance else "no guidance")

    def forwards(self, candidate: str) -> float:
        """Of a step: what counting says, a backward as two."""
        if candidate == "fastvideo":
            cycle = (self.interval + 1) * LADDER_STEPS + 2 + 1 + 3 * self.interval + 2
        else:
            rollout = 1 + (LADDER_STEPS - 1) / 2
            cycle = self.interval * rollout + 2 + 1 + 3 * self.interval + (2 if self.guidance else 1)
        return cycle / self.interval


CASES = (Case(interval=5, guidance=3.5, target=0.78), Case(interval=1, guidance=0.0, target=0.62))
CANDIDATES: Mapping[str, Mapping[str, object]] = {"fvd": {}, "fastvideo": {"preset": "fastvideo"}}


def method_config(candidate: str, case: Case) -> dict[str, object]:
    """The ladder is the same for both: its values cost nothing."""
    return {
        **CANDIDATES[candidate],
        "dmd_denoising_steps": [1000, 750, 500, 250],
        "warp_denoising_step": True,
        "generator_update_interval": case.interval,
        "real_score_guidance_scale": case.guidance,
        "guidance_convention": "offset",
    }


def run(
    folder: Path, size: str, case: Case, *, rounds: int, steps: int, environment: Mapping[str, str] | None = None
) -> dict[str, Runs]:
    """Rounds of all candidates in turns."""
    found = {candidate: Runs() for candidate in CANDIDATES}
    for turn in range(rounds):
        for candidate, runs in found.items():
            out = folder / f"{candidate}-{case.interval}-{steps}-{turn}"
            config = method_config(candidate, case)
            document = run_document(folder, SIZES[size], method="dmd2", roles=DMD2_ROLES, steps=steps, method_config=config)
            run_file = save_run_file(folder / f"{candidate}-{case.interval}.yaml", document)
            runs.add(*observed(fvd_command(run_file, out), out, folder / "site", environment))
    return found


def report_times(case: Case, found: Mapping[str, Runs]) -> bool:
    share = 1 / case.interval if case.interval > 1 else None
    seconds = {name: expected(runs.step_seconds, student_share=share) for name, runs in found.items()}
    cpu = {name: expected(runs.step_cpu, student_share=share, of_kind=median) for name, runs in found.items()}
    ratio, counted = (figures["fvd"] / figures["fastvideo"] for figures in (seconds, {n: case.forwards(n) for n in found}))
    print(f"### Time, {case.title}\n")
    print_table(
        ("", "a step, ms", "its CPU, ms", "counting: forwards a step", *(f"{role}'s forwards, as run" for role in DMD2_ROLES)),
        [
            (
                name,
                f"{1e3 * seconds[name]:.1f}",
                f"{1e3 * cpu[name]:.1f}",
                f"{case.forwards(name):.2f}",
                *(f"{runs.passes_each(role):.2f}" for role in DMD2_ROLES),
            )
            for name, runs in found.items()
        ],
    )
    print(f"ratio {verdict(ratio, case.target)}, of CPU {cpu['fvd'] / cpu['fastvideo']:.2f}; counting says {counted:.2f}\n")
    return ratio <= case.target


def report_memory(case: Case, found: Mapping[str, Runs]) -> bool:
    peaks = {name: min(runs.step_memory_mib) for name, runs in found.items()}
    ratio = peaks["fvd"] / peaks["fastvideo"]
    print(f"### Memory, {case.title}\n")
    print_table(
        ("", "peak of the steps above what was resident before, MiB", "peak of the process, MiB"),
        [(name, f"{peaks[name]:.0f}", f"{min(runs.peak_mib):.0f}") for name, runs in found.items()],
    )
    print(f"ratio {verdict(ratio, MEMORY_TARGET)}\n")
    return ratio <= MEMORY_TARGET


def main() -> int:
    parser = argparse.ArgumentParser(description="Cost of DMD2's schedule.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--intervals", nargs="+", type=int, default=[case.interval for case in CASES])
    parser.add_argument("--size", choices=SIZES, default="2m", help="of the networks whose time is taken")
    parser.add_argument("--memory-size", choices=SIZES, default="long", help="of those whose memory is")
    parser.add_argument("--check", action="store_true", help="exit 1 above a target")
    options = parser.parse_args()
    kept = []
    with tempfile.TemporaryDirectory() as name:
        inputs = {size: write_inputs(Path(name, size), size) for size in {options.size, options.memory_size}}
        for case in (case for case in CASES if case.interval in options.intervals):
            found = run(inputs[options.size], options.size, case, rounds=options.rounds, steps=options.steps)
            kept.append(report_times(case, found))
            steps = max(MEMORY_STEPS, case.interval + 1)
            size = options.memory_size
            found = run(inputs[size], size, case, rounds=1, steps=steps, environment=RETURN_FREED)
            kept.append(report_memory(case, found))
    print(f"{machine()}; {options.rounds} runs of {options.steps} steps")
    return int(options.check and not all(kept))


if __name__ == "__main__":
    sys.exit(main())
