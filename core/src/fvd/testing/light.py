"""Whether a module is light. Gated on the set of imported modules, not on a clock: the same on every machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

ALLOWED = frozenset({"fvd", "pluggy"})
"""What a light module may load besides the standard library and its own package."""

_REPORT = """
import sys
before = set(sys.modules)
try:
    exec({code!r})
finally:
    import json
    print("\\n" + json.dumps(sorted(set(sys.modules) - before)))
"""


def loaded_modules(code: str) -> set[str]:
    """The modules that ``code`` loads in a fresh interpreter with this one's ``sys.path``. Raises AssertionError with
    the interpreter's complaint where the code fails; ``SystemExit(0)`` is no failure."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(entry for entry in sys.path if entry))
    finished = subprocess.run(
        [sys.executable, "-c", _REPORT.format(code=code)], capture_output=True, text=True, env=environment, check=False
    )
    if finished.returncode != 0:
        raise AssertionError(f"{code!r} failed:\n{finished.stderr}")
    modules: list[str] = json.loads(finished.stdout.splitlines()[-1])
    return set(modules)


def assert_light_module(module_name: str) -> None:
    """Raise AssertionError where importing ``module_name`` loads more than the standard library, `fvd`'s light part,
    pluggy and its own package. Every plugin should test its ``plugin`` module with this."""
    own = module_name.partition(".")[0]
    tops = {name.partition(".")[0] for name in loaded_modules(f"import {module_name}")}
    heavy = sorted(tops - sys.stdlib_module_names - ALLOWED - {own, "__mp_main__"})
    if heavy:
        raise AssertionError(
            f"{module_name} is not light: importing it loads {', '.join(heavy)}. A light module imports only the standard"
            " library and fvd; put the rest into the modules that descriptors name."
        )
