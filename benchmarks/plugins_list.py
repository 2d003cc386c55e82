"""CPU time of `fvd plugins list`: against the least that any plugin host needs, and with 30 plugins against 3.

    python benchmarks/plugins_list.py [--runs 20] [--check]

Runs the commands in turn, so that a busy machine slows all alike, and compares user + system time of the child processes;
``fvd plugins list`` is ``python -m fvd.cli.main plugins list``. The first ratio is that of the installed environment to
``python -c "import importlib.metadata, pluggy"``, target 2.5; the second that of 30 further light plugins, each a
distribution of its own with a family, to 3 of them, target 2. ``--check`` exits 1 above a target. The ratio of minima is
the less noisy one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from common import machine, measure, print_table, verdict

from fvd.testing import fake_dist

LISTING = [sys.executable, "-m", "fvd.cli.main", "plugins", "list"]
BASELINE = [sys.executable, "-c", "import importlib.metadata, pluggy"]
PLUGIN = """
    import fvd

    @fvd.hookimpl
    def fvd_families():
        return [
            fvd.FamilySpec(
                name="model_{index}",
                target="bench_{index}.family:Family",
                config="bench_{index}.config:Config",
                summary="One of many",
                provides=fvd.TEXT_TO_VIDEO,
                samplers={{"ode", "sde"}},
                example=fvd.Example(path="somebody/model-{index}", training={{"learning_rate": 1e-5}}),
            )
        ]
"""


def install_plugins(folder: Path, count: int) -> Path:
    for index in range(count):
        fake_dist(
            folder,
            f"bench-{index}",
            entry_points={f"bench_{index}": f"bench_{index}.plugin"},
            modules={f"bench_{index}.plugin": PLUGIN.format(index=index)},
            requires=["fvd-core<1,>=0.1", "torch>=2.6", "diffusers>=0.30"],
        )
    return folder


def milliseconds(command: list[str], path: Path | None) -> float:
    """CPU time of one child process, with ``path`` on its module path."""
    return 1e3 * measure(command, environment={"PYTHONPATH": str(path)} if path else {}).cpu_seconds


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU time of `fvd plugins list`.")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--check", action="store_true", help="exit 1 above a target")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        few, many = install_plugins(Path(folder, "3"), 3), install_plugins(Path(folder, "30"), 30)
        commands = {
            "fvd plugins list": (LISTING, None),
            "importlib.metadata, pluggy": (BASELINE, None),
            "with 30 more plugins": (LISTING, many),
            "with 3 more plugins": (LISTING, few),
        }
        for command, path in commands.values():  # the first runs write bytecode
            milliseconds(command, path)
        runs = [[milliseconds(command, path) for command, path in commands.values()] for _ in range(options.runs)]
    times = dict(zip(commands, (list(of_one) for of_one in zip(*runs, strict=True)), strict=True))

    pairs = [("fvd plugins list", "importlib.metadata, pluggy", 2.5), ("with 30 more plugins", "with 3 more plugins", 2.0)]
    ratios = [(min(times[slow]) / min(times[fast]), target) for slow, fast, target in pairs]
    print_table(
        ("CPU, ms", "min", "median"),
        [(name, f"{min(of_one):.1f}", f"{statistics.median(of_one):.1f}") for name, of_one in times.items()],
    )
    print_table(
        ("ratio of minima", ""),
        [(f"{slow} / {fast}", verdict(*ratio)) for (slow, fast, _), ratio in zip(pairs, ratios, strict=True)],
    )
    print(f"{machine()}; {options.runs} runs")
    return int(options.check and any(ratio > target for ratio, target in ratios))


if __name__ == "__main__":
    sys.exit(main())
