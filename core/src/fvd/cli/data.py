"""`fvd data`: preparing training data."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from pydantic_core import ErrorDetails

    from fvd.config.models import PipelineConfig
    from fvd.config.yaml_lines import Document
    from fvd.errors import Problem
    from fvd.families import ClipPlan, Encoders


def configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    prepare = commands.add_parser(
        "prepare",
        help="encode videos and captions into parquet files to train on",
        description="Encode videos and captions with a model's own encoders into parquet files. A second run continues "
        "where the first ended, and encodes only what is new or changed.",
    )
    prepare.add_argument(
        "clips",
        type=Path,
        metavar="CLIPS",
        help="folder with videos and captions: a.mp4 + a.txt, metadata.jsonl, metadata.csv or videos2caption.json; "
        "with --text-only also a .txt (one prompt a line), .jsonl or .csv file",
    )
    prepare.add_argument("--family", required=True, help="kind of model, as `fvd plugins list` shows")
    prepare.add_argument("--model", required=True, help="folder or hub id of the model whose encoders are used")
    prepare.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="set one value of the family's pipeline_config, as in the run file that will train on the data (repeatable)",
    )
    prepare.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="where the prepared data goes")
    prepare.add_argument("--text-only", action="store_true", help="prompts alone, for training without videos")
    size = prepare.add_argument_group("clips", "default: what the model was made for")
    size.add_argument("--fps", type=_positive_float, help="frames a second to sample at")
    size.add_argument("--num-frames", type=_positive_int, help="frames of each clip, from its start")
    size.add_argument("--height", type=_positive_int, help="pixels")
    size.add_argument("--width", type=_positive_int, help="pixels")
    prepare.add_argument("--strict", action="store_true", help="fail, before anything is encoded, if any clip would be dropped")
    prepare.add_argument("--overwrite", action="store_true", help="delete what FOLDER was prepared with before and start anew")
    prepare.add_argument("--rows-per-file", type=_positive_int, default=64, help="clips of one parquet file (default: 64)")
    prepare.add_argument("--device", help="where the encoders run (default: cuda where there is one, else cpu)")
    prepare.set_defaults(execute=execute_prepare)


def execute_prepare(args: argparse.Namespace) -> int:
    from fvd.data.prepare import PrepareRequest, prepare

    encoders = _build_encoders(args)
    plan = None if args.text_only else _clip_plan(args, encoders)
    prepare(
        PrepareRequest(
            clips=args.clips,
            out=args.out,
            family=args.family,
            model=args.model,
            plan=plan,
            strict=args.strict,
            overwrite=args.overwrite,
            rows_per_file=args.rows_per_file,
        ),
        encoders,
    )
    return 0


def _build_encoders(args: argparse.Namespace) -> Encoders:
    from fvd.families import Family, FamilyContext

    config = _pipeline_config(args.plugins.load_config("family", args.family), args.family, args.overrides)
    family_class: type[Family] = args.plugins.load("family", args.family)
    context = FamilyContext(config=config, components_path=args.model, device=_device(args.device))
    return family_class(context).build_encoders()


def _pipeline_config(model: type[PipelineConfig], family: str, overrides: Sequence[str]) -> PipelineConfig:
    """The family's settings from ``KEY=VALUE`` texts. Raises ConfigError with everything that is wrong."""
    from pydantic import ValidationError

    from fvd.config.overrides import apply_overrides
    from fvd.config.yaml_lines import Document
    from fvd.errors import ConfigError, Problem

    document = Document({})
    apply_overrides(document, overrides)
    problems = document.problems
    if "components_path" in document.data:
        place, _ = document.locate(("components_path",), "--set")
        problems.append(Problem(message="is what --model says here", key="components_path", file=place))
    try:
        config = model.model_validate(document.data)
    except ValidationError as error:
        details = {str(detail["loc"][0]) if detail["loc"] else "": detail for detail in error.errors(include_url=False)}
        problems += [_explain(detail, key, model, family, document) for key, detail in details.items()]
    if problems:
        raise ConfigError(problems)
    return config


def _explain(detail: ErrorDetails, key: str, model: type[PipelineConfig], family: str, document: Document) -> Problem:
    """A pydantic error in the words of the command line."""
    from fvd.errors import Problem, did_you_mean

    place, _ = document.locate((key,), f"--family {family}")
    known = model.model_fields
    if detail["type"] == "extra_forbidden":
        settable = [name for name in known if name != "components_path"]
        cure = f"Keys: {', '.join(settable)}."
        return Problem(message=f"unknown key{did_you_mean(key, settable)}", key=key, file=place, cure=cure)
    description = known[key].description if key in known else None
    cure = f"{key}: {description}" if description else ""
    if detail["type"] == "missing":
        message = f"this family needs it: --set {key}=VALUE"
        return Problem(message=message, key=key, file=place, cure=cure)
    message = re.sub(r"^Value error, ", "", detail["msg"])
    shown = f", got {detail['input']!r}" if key else ""
    return Problem(message=message + shown, key=key, file=place, cure=cure)


def _clip_plan(args: argparse.Namespace, encoders: Encoders) -> ClipPlan:
    """The family's default with what the command line says instead."""
    from fvd.data.spec import VideoGeometry
    from fvd.families import ClipPlan

    default = encoders.default_plan
    geometry = default.geometry
    return ClipPlan(
        fps=float(default.fps if args.fps is None else args.fps),
        geometry=VideoGeometry(
            num_frames=geometry.num_frames if args.num_frames is None else args.num_frames,
            height=geometry.height if args.height is None else args.height,
            width=geometry.width if args.width is None else args.width,
        ),
    )


def _device(name: str | None) -> torch.device:
    """The device, tried out: a name alone says nothing about the machine."""
    import torch

    from fvd.errors import FvdError
    from fvd.runtime import choose_device

    if name is None:
        return choose_device()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise FvdError(f"unknown device {name!r}", cure="For example: --device cpu, --device cuda, --device cuda:1") from None
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise FvdError(
            f"--device {name} cannot be used: {str(error).splitlines()[0]}", cure=f"This machine has: {', '.join(there)}."
        ) from error
    return device


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value
