"""Which heavy modules a plugin's light module brings in: every `fvd` command would pay for them."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

HEAVY_MODULES = frozenset(
    {
        "torch", "diffusers", "transformers", "accelerate", "numpy", "scipy", "pandas", "pyarrow", "av", "pydantic", "yaml",
        "wandb", "tensorboard", "tensorflow", "jax",
    }
)  # fmt: skip
"""What a plugin's light module must not load."""


def heavy_among(new_modules: Collection[str]) -> set[str]:
    """The heavy modules that ``new_modules``, just imported, are or use.

    One that was there already costs nothing this time, but it will in the next command: so what the new modules hold in
    their namespaces counts as well.
    """
    heavy = {_top(name) for name in new_modules} & HEAVY_MODULES
    for name in new_modules:
        module = sys.modules.get(name)
        if _top(name) not in HEAVY_MODULES | sys.stdlib_module_names and isinstance(module, ModuleType):
            heavy |= HEAVY_MODULES & set(_origins(module))
    return heavy


def _origins(module: ModuleType) -> Iterator[str]:
    """Top-level packages of the modules, classes, functions and other objects in a namespace. Touches no lazy attribute: what
    is asked is Python's own, or the class."""
    for value in list(vars(module).values()):
        value = value.__self__ if type(value) is MethodType else value
        if issubclass(type(value), ModuleType):
            yield _top(str(vars(value).get("__name__", "")))
        elif issubclass(type(value), (FunctionType, BuiltinFunctionType)):
            yield _top(str(value.__module__))
        else:  # an instance is of its classes
            found: Any = value if issubclass(type(value), type) else type(value)
            for base in found.__mro__:
                yield _top(str(base.__module__))


def _top(name: str) -> str:
    return name.partition(".")[0]
