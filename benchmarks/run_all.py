"""Run every benchmark and write RESULTS.md: `nox -s bench`.

python benchmarks/run_all.py [--only NAME ...]      the sections of others stay as they are
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from common import FOLDER

BENCHMARKS = {
    "trainer_overhead": "What the trainer costs",
    "dmd2_schedule": "What DMD2's schedule saves",
    "one_step_dmd2": "DMD2 of a known distribution",
    "plugins_list": "`fvd plugins list`",
    "gpu_wan": "Wan 2.1 1.3B on a GPU",
}
"""Script, and heading."""
PREFACE = """# Benchmarks

Written by `nox -s bench`. Ratios are what to look at: times are of one machine, and of one that is shared, so candidates run in
turns, and the least of several counts. What each figure means and how it is taken is at the top of its script. A figure with
ABOVE misses its target."""
RESULTS = FOLDER / "RESULTS.md"


def section(name: str) -> str:
    """Heading, command and what the benchmark printed. Exits where it fails."""
    print(f"--- {name}", file=sys.stderr, flush=True)
    finished = subprocess.run([sys.executable, str(FOLDER / f"{name}.py")], stdout=subprocess.PIPE, text=True)
    if finished.returncode != 0:
        sys.exit(f"{name} failed with {finished.returncode}:\n{finished.stdout}")
    print(finished.stdout, flush=True)
    return f"{_heading(name)}\n\n`python benchmarks/{name}.py`\n\n{finished.stdout.strip()}"


def _heading(name: str) -> str:
    return f"## {BENCHMARKS[name]}"


def read_sections(path: Path) -> dict[str, str]:
    """What a former run has written, by benchmark."""
    if not path.exists():
        return {}
    parts = path.read_text(encoding="utf-8").split("\n## ")[1:]
    found = {part.partition("\n")[0]: f"## {part.strip()}" for part in parts}
    return {name: found[heading] for name, heading in BENCHMARKS.items() if heading in found}


def write_sections(path: Path, sections: Mapping[str, str]) -> None:
    parts = [PREFACE, *(sections[name] for name in BENCHMARKS if name in sections)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the benchmarks and write their tables.")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    options = parser.parse_args()
    sections = read_sections(RESULTS)
    for name in options.only:
        write_sections(RESULTS, sections := {**sections, name: section(name)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
