"""A trained role as a whole pipeline: its transformers, and copies of everything else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from diffusers import WanTransformer3DModel

import fvd
from fvd.errors import ModelError
from fvd_wan.folders import SHARED_COMPONENTS, TRANSFORMER_NAMES, read_json, read_pipeline_index


def export_pipeline(
    handle: fvd.RoleHandle, out_dir: Path, *, components: Path, flow_shift: float, boundary_ratio: float | None
) -> None:
    """Fill the empty folder ``out_dir`` so that diffusers' ``WanPipeline.from_pretrained(out_dir)`` loads the role.

    components: the pipeline to copy the other parts from. boundary_ratio: between two experts; None for one.
    """
    index = read_pipeline_index(components)
    for name in SHARED_COMPONENTS:
        if not (components / name).is_dir():
            raise ModelError(
                f"{components} has no {name}", cure="Export needs a whole pipeline as pipeline_config.components_path."
            )
        shutil.copytree(components / name, out_dir / name)
    for name in TRANSFORMER_NAMES:
        index[name] = ["diffusers", "WanTransformer3DModel"] if name in handle.modules else [None, None]
    for name, module in handle.modules.items():
        assert isinstance(module, WanTransformer3DModel)
        module.save_pretrained(out_dir / name, safe_serialization=True)
    index["boundary_ratio"] = boundary_ratio
    _write_json(out_dir / "model_index.json", index)
    _set_flow_shift(out_dir / "scheduler" / "scheduler_config.json", flow_shift)
    if (components / "fvd.json").is_file():
        shutil.copyfile(components / "fvd.json", out_dir / "fvd.json")


def _set_flow_shift(path: Path, flow_shift: float) -> None:
    config = read_json(path)
    key = "shift" if config.get("_class_name") == "FlowMatchEulerDiscreteScheduler" else "flow_shift"
    _write_json(path, {**config, key: flow_shift})


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
