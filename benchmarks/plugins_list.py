"""CPU time of `fvd plugins list` against the least that any plugin host needs.

    python benchmarks/plugins_list.py [--runs 20] [--check]

Runs ``python -m fvd.cli.main plugins list`` and ``python -c "import importlib.metadata, pluggy"`` in turn, so that a
busy machine slows both alike, and compares user + system time of the child processes. The target is a ratio of 2.5;
``--check`` exits 1 above it. The ratio of minima is the less noisy one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

TARGET = 2.5
LISTING = [sys.executable, "-m", "fvd.cli.main", "plugins", "list"]
BASELINE = [sys.executable, "-c", "import importlib.metadata, pluggy"]


def cpu_seconds(command: list[str]) -> float:
    """User + system time of one child process."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU time of `fvd plugins list`.")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--check", action="store_true", help=f"exit 1 above a ratio of {TARGET}")
    options = parser.parse_args()

    cpu_seconds(LISTING), cpu_seconds(BASELINE)  # the first runs write bytecode
    pairs = [(cpu_seconds(LISTING), cpu_seconds(BASELINE)) for _ in range(options.runs)]
    listing, baseline = (list(times) for times in zip(*pairs, strict=True))

    print(f"CPU ms over {options.runs} runs      min   median")
    for name, times in (("fvd plugins list", listing), ("importlib.metadata, pluggy", baseline)):
        print(f"{name:<28}{min(times) * 1e3:6.1f}  {statistics.median(times) * 1e3:6.1f}")
    ratio = min(listing) / min(baseline)
    print(f"{'ratio':<28}{ratio:6.2f}  {statistics.median(listing) / statistics.median(baseline):6.2f}   target {TARGET}")
    return 1 if options.check and ratio > TARGET else 0


if __name__ == "__main__":
    sys.exit(main())
