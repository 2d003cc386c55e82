"""Components with one thing wrong each, and a distribution that provides them all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fvd
from fvd.testing import fake_dist


@dataclass(frozen=True)
class Wrong:
    """check: the id that must fail, and ``also`` those that cannot help it. words: in the message. spec: fields of the
    descriptor that differ from those of a component of this kind that has nothing wrong."""

    kind: str
    check: str
    words: str
    target: str
    spec: Mapping[str, Any]
    also: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """``NoClamp`` is called ``no_clamp``."""
        return re.sub(r"(?<=.)(?=[A-Z])", "_", self.target.rpartition(":")[2]).lower()

    @property
    def id(self) -> str:
        return f"{self.check}-{self.name}"


class Collector:
    """The decorator of one module's components: ``@fails("B104", "words of the message")``."""

    def __init__(self, kind: str, **defaults: Any) -> None:
        self.kind = kind
        self.defaults = defaults
        self.found: list[Wrong] = []

    def __call__(self, check: str, words: str, *, also: str = "", **spec: Any) -> Callable[[Any], Any]:
        def note(target: Any) -> Any:
            path = f"{target.__module__}:{target.__name__}"
            self.found.append(Wrong(self.kind, check, words, path, {**self.defaults, **spec}, frozenset(also.split())))
            return target

        return note


HOOKS = {
    "family": ("fvd_families", "FamilySpec"),
    "method": ("fvd_methods", "MethodSpec"),
    "sampler": ("fvd_samplers", "SamplerSpec"),
    "validator": ("fvd_validators", "ValidatorSpec"),
    "tracker": ("fvd_trackers", "TrackerSpec"),
    "dataset_kind": ("fvd_dataset_kinds", "DatasetKindSpec"),
    "command": ("fvd_commands", "CommandSpec"),
}


def install_wrong(folder: Path, components: Iterable[Wrong]) -> None:
    """One light plugin ``wrong`` of the distribution acme-wrong."""
    listed: dict[str, list[str]] = {}
    for it in components:
        hook, spec_class = HOOKS[it.kind]
        fields = {"name": it.name, "target": it.target, "summary": f"fails {it.check}", **it.spec}
        arguments = ", ".join(f"{key}={value!r}" for key, value in fields.items())
        listed.setdefault(hook, []).append(f"{spec_class}({arguments})")
    hooks = [f"@hookimpl\ndef {hook}():\n    return [{', '.join(specs)}]\n" for hook, specs in listed.items()]
    source = "\n".join(
        ["from fvd.hookspecs import hookimpl", "from fvd.specs import *", "from fvd.specs import Example", *hooks]
    )
    fake_dist(
        folder, "acme-wrong", entry_points={"wrong": "acme_wrong.plugin"}, modules={"acme_wrong.plugin": source},
        requires=[f"fvd-core>={fvd.__version__},<1"],
    )  # fmt: skip
