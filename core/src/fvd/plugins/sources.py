"""Where an installed plugin comes from, and one hash over its files: what tells two environments apart."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

from fvd.plugins.beside import files_beside
from fvd.plugins.discovery import CORE_DISTRIBUTION
from fvd.plugins.installed import editable_folder
from fvd.plugins.records import PluginRecord
from fvd.plugins.required import requirement_names

SourceKind = Literal["index", "editable", "folder", "archive", "vcs", "file", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """index: from a package index, or from an installer that records nothing. editable, folder, archive, vcs: what pip was
    given, as it recorded (PEP 610). file: a plugin that is one file. unknown: the record of it cannot be read.

    location: the folder, file or URL; empty for an index and where it is unknown. commit: of ``vcs``, and of an editable
    folder under git. dirty: whether that folder has changes that are not committed; None where git cannot tell.
    """

    kind: SourceKind
    location: str = ""
    commit: str = ""
    dirty: bool | None = None

    def __str__(self) -> str:
        if self.kind == "unknown":
            return "an unknown place"
        commit = f" @ {self.commit[:12]}" if self.commit else ""
        return f"{self.kind} {self.location}".strip() + commit + (" with uncommitted changes" if self.dirty else "")


def find_source(record: PluginRecord) -> Source:
    if record.file:
        return Source(kind="file", location=record.file)
    try:
        found = distribution(record.distribution)
    except (PackageNotFoundError, ValueError):  # damaged metadata has no name to find it by
        return Source(kind="unknown")
    if folder := editable_folder(found):
        return _with_git(str(folder))
    direct_url = _direct_url(found)
    url = str(direct_url.get("url", ""))
    match direct_url:
        case {"dir_info": _}:
            return _folder(url)
        case {"vcs_info": {"commit_id": str(commit)}}:
            return Source(kind="vcs", location=url, commit=commit)
        case {"archive_info": _}:
            return Source(kind="archive", location=url)
    return Source(kind="index")


def hash_files(record: PluginRecord) -> str:
    """SHA-256 over the plugin's files: sorted relative paths with the hash of their content.

    A wheel counts what it installed, an editable or other folder the package as Python finds it; so an editable
    checkout, and the wheel that was built from it, have one hash. Of a plugin that is one file, what it uses of its folder.
    """
    total = hashlib.sha256()
    for relative, path in sorted(_files_of(record)):
        try:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:
            content = "missing"
        total.update(f"{relative}\0{content}\n".encode())
    return total.hexdigest()


def find_packages(records: Iterable[PluginRecord]) -> dict[str, str]:
    """What these plugins declare that they need, and which version of it is installed: ``{"diffusers": "0.38.0"}``, sorted.
    For a requirement with an extra (``fvd-core[diffusers]``), also what the extra brings. Core and torch are left out:
    a lock has them anyway."""
    names = {name for record in records if not record.file for name in requirement_names(record.distribution)}
    return {name: version for name in sorted(names - {CORE_DISTRIBUTION, "torch"}) if (version := installed_version(name))}


def installed_version(name: str) -> str:
    """Empty where it is not installed."""
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return ""


def _direct_url(found: Distribution) -> dict[str, Any]:
    try:
        document = json.loads(found.read_text("direct_url.json") or "{}")
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _folder(url: str) -> Source:
    try:
        return Source(kind="folder", location=url2pathname(urlsplit(url).path))
    except ValueError:  # no URL
        return Source(kind="unknown")


def _with_git(folder: str) -> Source:
    command = ["git", "--no-optional-locks", "-C", folder, "status", "--porcelain=v2", "--branch", "--", "."]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, ValueError, subprocess.SubprocessError):  # ValueError: no path, no text
        return Source(kind="editable", location=folder)
    lines = output.splitlines()
    commits = [line.removeprefix("# branch.oid ") for line in lines if line.startswith("# branch.oid ")]
    dirty = any(not line.startswith("#") for line in lines)
    return Source(kind="editable", location=folder, commit=commits[0] if commits else "", dirty=dirty)


def _listed_files(found: Distribution) -> list[tuple[str, Path]]:
    """What a wheel installed, by its RECORD. Empty for an editable installation, whose RECORD lists no code."""
    return [(str(path), Path(str(path.locate()))) for path in found.files or () if _matters(path)]


def _files_of(record: PluginRecord) -> Iterable[tuple[str, Path]]:
    if record.file:
        return files_beside(Path(record.file)).items()
    return _listed_files(distribution(record.distribution)) or _package_files(record.module)


def _package_files(module: str) -> Iterator[tuple[str, Path]]:
    """Every file of the top-level package that ``module`` is in, or the one file that it is."""
    top = module.partition(".")[0]
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return
    if spec is None:
        return
    for folder in map(Path, spec.submodule_search_locations or ()):
        for path in folder.rglob("*"):
            relative = PurePath(top) / path.relative_to(folder)
            if path.is_file() and _matters(relative):
                yield relative.as_posix(), path
    if spec.submodule_search_locations is None and spec.origin:
        yield Path(spec.origin).name, Path(spec.origin)


def _matters(path: PurePath) -> bool:
    """Neither metadata nor scripts of the installation, nor what Python, editors and file managers leave."""
    first = path.parts[0]
    return not (
        first == ".."
        or first.endswith((".dist-info", ".egg-info", ".pth"))
        or first.startswith("__editable__")
        or "__pycache__" in path.parts
        or path.suffix == ".pyc"
        or any(part.startswith(".") for part in path.parts)
        or path.name.endswith("~")
    )
