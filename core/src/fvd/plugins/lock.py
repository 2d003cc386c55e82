"""``run.lock.json``: exactly what a run was made with. The plugins it uses, core, Python, torch, and the run file.

It lies in the run directory and in every checkpoint. A plugin that a run does not use is not in its lock, so installing
one changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fvd
from fvd.errors import PluginError
from fvd.plugins.discovery import CORE_DISTRIBUTION, CORE_PLUGIN
from fvd.plugins.records import PluginRecord
from fvd.plugins.registry import Plugins
from fvd.plugins.sources import Source, find_packages, find_source, hash_files, installed_version
from fvd.specs import Spec

LOCK_FILE = "run.lock.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class LockedPlugin:
    """components: ``family:wan``, … that the run uses. sha256: over the plugin's files, see `hash_files`."""

    name: str
    distribution: str
    version: str
    components: tuple[str, ...]
    source: Source
    sha256: str

    def __str__(self) -> str:
        return f"{self.version}  {self.sha256[:12]}  {self.source}"


@dataclass(frozen=True, kw_only=True)
class Lock:
    """packages: versions of what the plugins say that they need. run_file: the effective run file, with absolute paths.
    latent_shape: (C, T, H, W), once the run is built."""

    fvd_core: str
    python: str
    torch: str
    plugins: tuple[LockedPlugin, ...]
    packages: Mapping[str, str]
    run_file: Mapping[str, Any]
    latent_shape: tuple[int, int, int, int] | None = None

    @property
    def run_file_sha256(self) -> str:
        return sha256_of(self.run_file)

    def as_document(self) -> dict[str, Any]:
        """Plain data for JSON: the fields, the format's number, and ``run_file_sha256``."""
        return {"format": FORMAT, **asdict(self), "run_file_sha256": self.run_file_sha256}

    def as_json(self) -> str:
        return json.dumps(self.as_document(), indent=2, ensure_ascii=False) + "\n"


# --- making and reading one ------------------------------------------------------------------------------------------
def make_lock(plugins: Plugins, used: Iterable[Spec], run_file: Mapping[str, Any]) -> Lock:
    """The lock of a run that uses these descriptors; core is in every lock. Equal for equal environments."""
    components: dict[PluginRecord, set[str]] = {}
    for spec in used:
        components.setdefault(plugins.owner(spec), set()).add(f"{spec.kind}:{spec.name}")
    records = [record for record in plugins.records if record in components or _is_core(record)]
    entries = [_entry(record, components.get(record, ())) for record in records]
    return _lock(entries, find_packages(record for record in records if not _is_core(record)), run_file)


def lock_again(lock: Lock, plugins: Plugins, run_file: Mapping[str, Any]) -> Lock:
    """What ``lock`` would say if it were made now; plugins that are gone are left out. Imports nothing of a plugin."""
    components = {(entry.distribution, entry.name): entry.components for entry in lock.plugins}
    records = [(record, components.get((record.distribution, record.name))) for record in plugins.records]
    entries = [_entry(record, found) for record, found in records if found is not None]
    packages = {name: version for name in lock.packages if (version := installed_version(name))}
    return _lock(entries, packages, run_file)


def read_lock(path: Path) -> Lock:
    """Raises PluginError (P12) for a file that is missing, cannot be read, or is no lock."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return _from_document(document)
    except FileNotFoundError:
        raise PluginError(
            f"there is no lock file {path} [P12]",
            cure=f"Every run writes {LOCK_FILE} to its training.output_dir and its checkpoints; name one of those.",
        ) from None
    except OSError as error:
        raise PluginError(f"cannot read the lock file {path}: {error.strerror or error} [P12]") from None
    except (KeyError, TypeError, ValueError):
        raise PluginError(
            f"{path} is not a lock file of this version of fvd [P12]", cure=f"Name the {LOCK_FILE} of a run."
        ) from None


def _is_core(record: PluginRecord) -> bool:
    return (record.distribution, record.name) == (CORE_DISTRIBUTION, CORE_PLUGIN)


def _lock(entries: Sequence[LockedPlugin], packages: Mapping[str, str], run_file: Mapping[str, Any]) -> Lock:
    # As JSON has it, so that a lock that was read equals the one that was written.
    plain = json.loads(json.dumps(run_file))
    return Lock(
        fvd_core=fvd.__version__,
        python=platform.python_version(),
        torch=installed_version("torch"),
        plugins=tuple(entries),
        packages=packages,
        run_file=plain,
    )


def _entry(record: PluginRecord, components: Collection[str]) -> LockedPlugin:
    return LockedPlugin(
        name=record.name,
        distribution=record.distribution,
        version=record.version,
        components=tuple(sorted(components)),
        source=find_source(record),
        sha256=hash_files(record),
    )


def _from_document(document: dict[str, Any]) -> Lock:
    if document["format"] != FORMAT:
        raise ValueError(document["format"])
    entries = [
        LockedPlugin(**{**entry, "source": Source(**entry["source"]), "components": tuple(entry["components"])})
        for entry in document["plugins"]
    ]
    shape = document["latent_shape"]
    return Lock(
        fvd_core=document["fvd_core"],
        python=document["python"],
        torch=document["torch"],
        plugins=tuple(entries),
        packages=dict(document["packages"]),
        run_file=dict(document["run_file"]),
        latent_shape=None if shape is None else tuple(shape),
    )


def sha256_of(value: object) -> str:
    """Of plain data; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
