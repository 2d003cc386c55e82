"""Run every benchmark and write RESULTS.md: `nox -s bench`.

python benchmarks/run_all.py [--only NAME ...] [--out FILE]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from common import FOLDER, machine

BENCHMARKS = {
    "trainer_overhead": "What the trainer costs",
    "dmd2_schedule": "What DMD2's schedule saves",
    "one_step_dmd2": "One-step DMD2 of the toy mixture",
    "plugins_list": "`fvd plugins list`",
    "gpu_wan": "Wan 2.1 1.3B on a GPU",
}
"""Script, and heading."""
PREFACE = """# Benchmarks

Written by `nox -s bench`. Ratios are what to look at: times are of one machine, and of one that is shared, so candidates run in
turns and the least of several counts. What each figure means and how it is taken is at the top of its script.
"""


def section(name: str) -> str:
    """Heading, command and what the benchmark printed. Exits where it fails."""
    command = [sys.executable, str(FOLDER / f"{name}.py")]
    print(f"--- {name}", file=sys.stderr, flush=True)
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if finished.returncode != 0:
        sys.exit(f"{name} failed with {finished.returncode}:\n{finished.stdout}")
    print(finished.stdout, flush=True)
    return f"## {BENCHMARKS[name]}\n\n`python benchmarks/{name}.py`\n\n{finished.stdout.strip()}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the benchmarks and write their tables.")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--out", type=Path, default=FOLDER / "RESULTS.md")
    options = parser.parse_args()
    sections = [section(name) for name in options.only]
    options.out.write_text("\n".join([PREFACE, f"{machine()}\n", *sections]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
