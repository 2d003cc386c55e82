"""What lies in a model folder in diffusers format. Standard library only, so that `fvd check` can ask.

Such a folder has ``model_index.json`` and one subfolder a component: ``transformer``, ``vae``, ``text_encoder``,
``tokenizer``, ``scheduler``. A folder that is itself a transformer (``config.json`` and weights) serves as a role too; the
other parts then come from ``pipeline_config.components_path``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fvd.errors import ModelError

SHARED_PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")
"""What all roles of a run share."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FORMAT_CURE = "Give a folder in diffusers format, or the hub id of one (these often end in -Diffusers)."
_DAMAGED_CURE = "The file is damaged; copy or download it again."


def local_folder(location: str) -> Path | None:
    """The folder that ``location`` names on this machine; None when it can only be a hub id.

    Raises ModelError for a path that is not there, or is a file.
    """
    path = Path(location).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{location} is a file, not a model folder", cure=_FORMAT_CURE)
    if _HUB_ID.fullmatch(location) and not Path(location.split("/")[0]).exists():
        return None
    raise ModelError(
        f"model folder {location} does not exist", cure="Correct the path; it is relative to where fvd was started."
    )


def find_transformers(folder: Path, names: Sequence[str] = ("transformer",)) -> dict[str, Path]:
    """The subfolder of each transformer in ``folder`` that ``model_index.json`` names, by its name there.

    ``folder`` may be a whole pipeline, a folder with ``transformer`` in it, or a transformer. Raises ModelError for others.
    """
    if (folder / "model_index.json").is_file():
        index = read_json(folder / "model_index.json")
        present = {name: folder / name for name in names if (index.get(name) or [None])[0]}
        if "transformer" not in present:
            raise ModelError(f"{folder / 'model_index.json'} names no transformer", cure=_FORMAT_CURE)
        return present
    if (folder / "config.json").is_file():
        return {"transformer": folder}
    if (folder / "transformer" / "config.json").is_file():
        return {"transformer": folder / "transformer"}
    raise ModelError(f"{folder} is not a model in diffusers format: it has no model_index.json", cure=_FORMAT_CURE)


def read_config(folder: Path, class_name: str) -> dict[str, Any]:
    """``config.json`` of a part of a model. Raises ModelError when it is of another class than ``class_name``."""
    config = read_json(folder / "config.json")
    found = config.get("_class_name")
    if found != class_name:
        raise ModelError(f"{folder} is a {found}, not a {class_name}", cure=_FORMAT_CURE)
    return config


def read_pipeline_index(folder: Path, class_names: Sequence[str]) -> dict[str, Any]:
    """``model_index.json``. Raises ModelError when it is of another pipeline than those named."""
    index = read_json(folder / "model_index.json")
    found = index.get("_class_name")
    if found not in class_names:
        raise ModelError(f"{folder} is a {found}, not a {' or '.join(class_names)}", cure=_FORMAT_CURE)
    return index


def check_shared_parts(folder: Path) -> None:
    """Raises ModelError that names what is missing of VAE, text encoder and tokenizer."""
    missing = [name for name in ("vae", "text_encoder", "tokenizer") if not (folder / name).is_dir()]
    if missing:
        raise ModelError(
            f"{folder} has no {', no '.join(missing)}",
            cure="Set `pipeline_config.components_path` to a whole pipeline: a folder in diffusers format or a hub id.",
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError for a file that is missing, unreadable or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing", cure="The model folder is not complete; copy or download it again.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", cure=_DAMAGED_CURE) from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object", cure=_DAMAGED_CURE)
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def positive_integer(folder: Path, config: dict[str, Any], key: str, default: int | None = None) -> int:
    """``config[key]``, of the config.json in ``folder``. Raises ModelError for anything but a whole number above 0."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ModelError(f"{folder / 'config.json'}: {key} must be a positive integer, not {value!r}", cure=_FORMAT_CURE)
    return value
