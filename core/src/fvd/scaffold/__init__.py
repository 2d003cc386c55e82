"""`fvd plugins new`: a complete distribution to begin with, one set of templates a kind of plugin.

The folders beside this file hold the templates: ``common`` is in every distribution, the others in those of their kind. A
template's path and text are filled in by `string.Template`; its suffix ``.template`` goes, and keeps tools from taking a
template for a program.
"""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import fvd
from fvd.errors import FvdError, PluginError
from fvd.files import folder_written_aside
from fvd.plugins.discovery import LOCAL, canonical

if TYPE_CHECKING:
    from fvd.plugins import Plugins

_TORCH, _PYDANTIC = "torch>=2.6", "pydantic>=2.7,<3"

LIBRARIES: dict[str, tuple[str, ...]] = {
    "family": (_TORCH, _PYDANTIC, "diffusers>=0.35", "safetensors>=0.4"),
    "method": (_TORCH, _PYDANTIC),
    "sampler": (_TORCH,),
    "validator": (_TORCH,),
    "tracker": (),
}
"""What a new plugin can be, and what its code imports besides fvd."""

SUFFIX = ".template"
_WORDS = re.compile(r"[a-z0-9]+([-_.][a-z0-9]+)*")


@dataclass(frozen=True)
class NewPlugin:
    """The names of a new plugin, all from that of its distribution: ``fvd-ltx`` has the package ``fvd_ltx`` and provides
    ``ltx``; without the prefix ``fvd-`` the whole name counts, ``acme-ltx`` provides ``acme_ltx``."""

    distribution: str
    kind: str

    @property
    def package(self) -> str:
        return canonical(self.distribution).replace("-", "_")

    @property
    def name(self) -> str:
        """Of the plugin and of its component."""
        return self.package.removeprefix("fvd_")

    def check(self, plugins: Plugins) -> None:
        """Raise PluginError for names that cannot be used, or that are somebody else's already."""
        problem = self._problem
        if problem:
            raise PluginError(f"{self.distribution!r} cannot be its name: {problem}", cure=_suggestion(self.distribution))
        taken = self._taken_by(plugins)
        if taken:
            raise PluginError(f"{self.distribution!r} cannot be used: {taken}", cure="Choose another name.")

    @property
    def _problem(self) -> str:
        """Why these cannot be names, or nothing."""
        if not _WORDS.fullmatch(self.distribution):
            return "it takes lower-case letters (a to z) and digits, in words joined by `-`"
        if not self.distribution[0].isalpha():
            return "it must begin with a letter"
        if not self.name[0].isalpha():
            return "what comes after `fvd-` must begin with a letter"
        return f"{self.name} is a word of Python" if keyword.iskeyword(self.name) else ""

    def _taken_by(self, plugins: Plugins) -> str:
        """Who has one of the names already, or nothing."""
        from fvd.plugins.missing import catalogue

        if self.name == LOCAL or canonical(self.distribution) == LOCAL:
            return f"{LOCAL} stands for plugins that are one file"
        if self.kind == "tracker" and self.name == "none":
            return "`trackers: none` means that there is none"
        known = catalogue()
        owner = known.get(self.kind, {}).get(self.name)
        if owner:
            return f"{self.kind} {self.name!r} is provided by {owner}"
        for distribution in {it for of_kind in known.values() for it in of_kind.values()}:
            if canonical(self.distribution) == canonical(distribution):
                return f"{distribution} is a known distribution"
        for record in plugins.records:
            if record.answers_to(self.distribution) or record.answers_to(self.name):
                return f"plugin {record} is installed"
        for spec in plugins.specs(self.kind):
            if spec.name == self.name:
                return f"{self.kind} {self.name!r} is provided by the installed plugin {plugins.owner(spec)}"
        if _is_importable(self.package):
            return f"there is a module {self.package!r} already"
        return ""


def write_plugin(new: NewPlugin, into: Path) -> list[Path]:
    """Write the distribution as the new folder ``into / new.distribution``, whole or not at all, and return its files, relative
    to it. Raises FvdError where the folder exists, or cannot be written."""
    target = into / new.distribution
    if target.exists():
        raise FvdError(f"{target} exists already", cure="Choose another name, or another folder with --into.")
    if not into.is_dir():
        raise FvdError(f"there is no folder {into}", cure="Make it, or name another with --into.")
    texts = render(new)
    with folder_written_aside(target) as folder:
        for relative, text in texts.items():
            path = folder / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return list(texts)


def render(new: NewPlugin) -> dict[Path, str]:
    """Every file of the distribution with its text, sorted."""
    values = _values(new)
    texts = {}
    for folder in ("common", new.kind):
        root = Path(__file__).with_name(folder)
        for path in sorted(root.rglob(f"*{SUFFIX}")):
            relative = Template(str(path.relative_to(root)).removesuffix(SUFFIX)).substitute(values)
            texts[Path(relative)] = Template(path.read_text(encoding="utf-8")).substitute(values)
    return dict(sorted(texts.items()))


def _values(new: NewPlugin) -> dict[str, str]:
    major, minor = fvd.__version__.split(".")[:2]
    requirements = [f"fvd-core>={major}.{minor},<{int(major) + 1}", *LIBRARIES[new.kind]]
    return {
        "distribution": new.distribution,
        "package": new.package,
        "name": new.name,
        "kind": new.kind,
        "class_name": "".join(word.capitalize() for word in new.name.split("_")),
        "dependencies": ", ".join(f'"{line}"' for line in requirements),
    }


def _suggestion(text: str) -> str:
    if not text.isascii():
        return "For example: fvd-mine"  # what is left of its letters would be no word
    words = [word for word in re.findall(r"[a-z][a-z0-9]*", text.lower()) if word != "fvd" and not keyword.iskeyword(word)]
    return f"For example: fvd-{'-'.join(words) or 'mine'}"


def _is_importable(package: str) -> bool:
    found = find_spec(package)
    return found is not None and found.origin is not None
