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
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

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


def cpu_seconds(command: list[str], path: Path | None = None) -> float:
    """User + system time of one child process, with ``path`` on its module path."""
    environment = dict(os.environ, PYTHONPATH=str(path)) if path else None
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def print_ratio(slow: list[float], fast: list[float], target: float) -> float:
    ratio = min(slow) / min(fast)
    print(f"{'ratio':<28}{ratio:6.2f}  {statistics.median(slow) / statistics.median(fast):6.2f}   target {target}")
    return ratio


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
            cpu_seconds(command, path)
        runs = [[cpu_seconds(command, path) for command, path in commands.values()] for _ in range(options.runs)]
    times = dict(zip(commands, (list(of_one) for of_one in zip(*runs, strict=True)), strict=True))

    print(f"CPU ms over {options.runs} runs      min   median")
    for name, of_one in times.items():
        print(f"{name:<28}{min(of_one) * 1e3:6.1f}  {statistics.median(of_one) * 1e3:6.1f}")
    too_slow = [
        print_ratio(times["fvd plugins list"], times["importlib.metadata, pluggy"], 2.5) > 2.5,
        print_ratio(times["with 30 more plugins"], times["with 3 more plugins"], 2.0) > 2.0,
    ]
    return int(options.check and any(too_slow))


if __name__ == "__main__":
    sys.exit(main())
