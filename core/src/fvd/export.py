"""Exporting one role: the family writes the weights, core says where they come from and how to sample them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import fvd
from fvd.errors import PluginError
from fvd.files import folder_written_aside
from fvd.inference import TrainedRun
from fvd.validation.weights import Weights

PROVENANCE = "fvd-export.json"


def export_role(run: TrainedRun, role: str, out: Path, format: str, weights: Weights) -> None:
    """Write ``out``, whole or not at all. Raises FvdError for an unknown role or format, or a disk that refuses;
    PluginError for a family that writes nothing."""
    handle = run.load_role(role, weights)
    with folder_written_aside(out) as aside:
        run.family.export(handle, aside, format)
        if not any(aside.iterdir()):
            family = run.family_spec.name
            raise PluginError(
                f"the family {family} has written nothing for the format {format!r}",
                cure=f"This is a mistake in the family's code; `fvd plugins check {family}` shows it (B114).",
            )
        (aside / PROVENANCE).write_text(json.dumps(_provenance(run, role, weights), indent=2) + "\n", encoding="utf-8")


def _provenance(run: TrainedRun, role: str, weights: Weights) -> dict[str, object]:
    return {
        "fvd": fvd.__version__,
        "recipe": run.config.recipe.model_dump(),
        "role": role,
        "step": run.checkpoint.step,
        "weights": weights,
        "base": run.config.roles[role].path,
        "flow_shift": run.config.pipeline_config.flow_shift,
        "sampling": asdict(run.sampling_plan),
    }
