"""Real runs, as `fvd run` makes them, and what they leave, for the checks that a run in two halves equals a straight one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from fvd.config.load import LoadedRun
from fvd.config.models import MethodConfig, PipelineConfig, Recipe, RoleConfig, RunConfig, TrainingConfig
from fvd.files import step_folder
from fvd.launch import launch
from fvd.plugins import Plugins
from fvd.testing.conformance.asserts import require, without_output

SMALL: Mapping[str, object] = {"mixed_precision": "no", "dataloader_num_workers": 0, "train_batch_size": 2}
"""Under ``training:`` of every run of the kit."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A run of one family and one method, but for where it writes and how long it goes. Names as in a run file.

    models: role -> path. training: further keys.
    """

    plugins: Plugins
    family: str
    method: str
    models: Mapping[str, tuple[str, bool]]
    pipeline_config: PipelineConfig
    method_config: MethodConfig
    training: Mapping[str, object]

    def config(self, output_dir: Path, steps: int) -> RunConfig:
        """``models`` maps role -> (path, whether it is trained)."""
        section = {**SMALL, **self.training, "output_dir": str(output_dir), "max_train_steps": steps}
        return RunConfig(
            recipe=Recipe(family=self.family, method=self.method),
            roles={
                name: RoleConfig(family=self.family, path=path, trainable=trainable)
                for name, (path, trainable) in self.models.items()
            },
            training=TrainingConfig.model_validate(section),
            pipeline_config=self.pipeline_config,
            method_config=self.method_config,
        ).with_optimization_written_out()

    def run(self, output_dir: Path, steps: int) -> Path:
        """Run to ``steps``, or on from where an earlier run in ``output_dir`` has ended. Returns its last checkpoint."""
        loaded = LoadedRun(Path("run.yaml"), "", self.config(output_dir, steps), [], self.plugins)
        with without_output():
            launch(loaded, resume="auto")
        return output_dir / "checkpoints" / step_folder(steps)


def require_resumable(trial: Trial, folder: Path, steps: int) -> None:
    """Raise CheckFailure where ``steps`` steps and as many more are not, bit for bit, twice as many at once."""
    straight = trial.run(folder / "straight", 2 * steps)
    trial.run(folder / "halves", steps)
    resumed = trial.run(folder / "halves", 2 * steps)
    expected, found = read_tensors(straight), read_tensors(resumed)
    require(expected.keys() == found.keys(), "a resumed run does not save what a straight one saves")
    different = sorted(name for name in expected if not torch.equal(expected[name], found[name]))
    listed = ", ".join(different[:3]) + (", …" if len(different) > 3 else "")
    require(
        not different,
        f"{steps} steps and {steps} more do not give what {2 * steps} at once give: {len(different)} of {len(expected)} tensors"
        f" of the checkpoint differ ({listed}). What a method keeps from step to step belongs into buffers.",
    )
    one, other = read_metrics(folder / "straight"), read_metrics(folder / "halves")
    logged = [row["step"] for row, again in zip(one, other, strict=False) if row != again]
    require(
        one == other,
        f"a resumed run logs other metrics than a straight one, from step {logged[0] if logged else len(other)} on",
    )


def read_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, read without fvd's own code."""
    reader = FileSystemReader(checkpoint / "state")
    metadata = reader.read_metadata().state_dict_metadata
    tensors: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        # "assuming the intent is to load in a single process": it is.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """What is logged, but for time and memory, and for tensors that do not move, looked at in a process's first updates."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith(("perf/", "health/unmoved"))} for row in rows]
