"""The run directory: what lies where, and who may write into it.

run.yaml                    the effective run file (a valid run file itself)
run.lock.json               what it is made with: plugins, versions, hashes, and the run file
metrics.jsonl               one line a step
checkpoints/step-00000100/  whole, or not there; failed-00000100: what was left where training failed
validation/step-00000100/   videos
logs/                       fvd.log, the run file as given, the trackers' own files
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from filelock import FileLock, Timeout

from fvd.config.models import RunConfig, parse_data_path
from fvd.errors import CheckpointError
from fvd.files import remove_folder, remove_folder_leftovers, write_text_aside
from fvd.plugins.lock import LOCK_FILE, Lock


@dataclass(frozen=True)
class RunDirectory:
    path: Path

    @property
    def run_file(self) -> Path:
        return self.path / "run.yaml"

    @property
    def lock_file(self) -> Path:
        return self.path / LOCK_FILE

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def validation(self) -> Path:
        return self.path / "validation"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def refuse_foreign(self) -> None:
        """Raise CheckpointError for a folder that holds something else than a run."""
        if self.path.exists() and not self.path.is_dir():
            raise CheckpointError(f"training.output_dir {self.path} is a file", cure="Name a folder.")
        if self.path.is_dir() and not self.run_file.exists() and any(entry.name != ".lock" for entry in self.path.iterdir()):
            raise CheckpointError(
                f"training.output_dir {self.path} is not empty and holds no fvd run",
                cure="Name an empty or a new folder; nothing in this one was touched.",
            )

    def check_writable(self) -> None:
        """Raise CheckpointError where nothing can be written, before anything heavy is loaded."""
        existing = next(folder for folder in (self.path, *self.path.parents) if folder.exists())
        try:
            with TemporaryDirectory(dir=existing, prefix=".fvd-"):
                pass
        except OSError as error:
            raise CheckpointError(
                f"nothing can be written to training.output_dir {self.path}: {error.strerror or error}",
                cure="Name another folder.",
            ) from None

    def has_steps(self) -> bool:
        """Whether a run has made a step here. What a validation says before the first is no step."""
        return self.run_file.exists() and any(row["step"] > 0 for row in self._logged())

    def has_logged(self, step: int, metric: str) -> bool:
        return any(row["step"] == step and metric in row for row in self._logged())

    def _logged(self) -> Iterator[dict[str, Any]]:
        """The rows of metrics.jsonl; a torn last line is left out."""
        lines = self.metrics_file.read_text(encoding="utf-8").splitlines() if self.metrics_file.exists() else []
        for line in lines:
            with suppress(ValueError):
                yield json.loads(line)

    def read_document(self) -> dict[str, Any]:
        """The effective run file, as plain data. Raises CheckpointError when it cannot be read."""
        try:
            document = yaml.safe_load(self.run_file.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise CheckpointError(f"cannot read {self.run_file}: {error}", cure="Name another training.output_dir.") from None
        if not isinstance(document, dict):
            raise CheckpointError(f"{self.run_file} is not a run file", cure="Name another training.output_dir.")
        return document

    def forget_after(self, step: int) -> None:
        """Remove the videos of steps that are made again: all of them when the run starts, else those after ``step``."""
        remove_folder_leftovers(self.validation)
        for folder in self.validation.glob("step-*"):
            if step == 0 or int(folder.name.removeprefix("step-")) > step:
                remove_folder(folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for one process. Raises CheckpointError when another one has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise CheckpointError(
                f"another process is running in {self.path}", cure="Wait for it, stop it, or name another training.output_dir."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def prepare(self, config: RunConfig, lock: Lock, *, source_name: str, source_text: str) -> Path:
        """Make the directory and write what describes the run. Returns the copy of the run file as given."""
        given = self.logs / f"given-{source_name}"
        write_text_aside(given, source_text)
        write_text_aside(self.lock_file, lock.as_json())
        write_text_aside(self.run_file, dump_run_file(config))
        return given


def dump_run_file(config: RunConfig) -> str:
    header = "# The effective run file: defaults filled in, older spellings moved, --set applied, local paths absolute.\n"
    return header + yaml.safe_dump(with_absolute_paths(config.as_document()), sort_keys=False, allow_unicode=True)


def with_absolute_paths(document: dict[str, Any]) -> dict[str, Any]:
    """Local paths made absolute, so that the file means the same from any folder. Hub ids stay."""
    for role in document["roles"].values():
        if role["path"]:  # a role that the method makes has none
            role["path"] = _absolute_if_local(role["path"])
    pipeline = document["pipeline_config"]
    if pipeline["components_path"]:
        pipeline["components_path"] = _absolute_if_local(pipeline["components_path"])
    training = document["training"]
    training["output_dir"] = _absolute(training["output_dir"])
    if training["validation_dataset_file"]:
        training["validation_dataset_file"] = _absolute(training["validation_dataset_file"])
    for key in ("data_path", "validation_data_path"):
        if training[key] is not None:
            training[key] = {_absolute(folder): repeats for folder, repeats in parse_data_path(training[key]).items()}
    return document


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _absolute_if_local(path: str) -> str:
    return _absolute(path) if Path(path).expanduser().exists() else path
