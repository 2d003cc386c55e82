"""Exporting one role: the family writes the weights, core says where they come from and how to sample them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import fvd
from fvd.errors import FvdError
from fvd.inference import TrainedRun

PROVENANCE = "fvd-export.json"


def export_role(run: TrainedRun, role: str, out: Path, format: str) -> None:
    """Write ``out``, whole or not at all. Raises FvdError for an unknown role or format, or a disk that refuses."""
    handle = run.load_role(role)
    aside = out.with_name(f".{out.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        run.family.export(handle, aside, format)
        (aside / PROVENANCE).write_text(json.dumps(_provenance(run, role), indent=2) + "\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        aside.rename(out)
    except OSError as error:
        raise FvdError(
            f"cannot write {out}: {error.strerror or error}", cure="Free some space, or name another folder."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _provenance(run: TrainedRun, role: str) -> dict[str, object]:
    return {
        "fvd": fvd.__version__,
        "recipe": run.config.recipe.model_dump(),
        "role": role,
        "step": run.checkpoint.step,
        "base": run.config.roles[role].path,
        "flow_shift": run.config.pipeline_config.flow_shift,
        "sampling": asdict(run.sampling_plan),
    }
