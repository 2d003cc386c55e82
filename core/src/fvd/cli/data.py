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
    from fvd.data.spec import VideoGeometry
    from fvd.errors import Problem
    from fvd.families import ClipPlan, Encoders, Family


def configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    _configure_prepare(commands)
    _configure_pairs(commands)


def _configure_prepare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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
    _add_model_arguments(prepare, model_help="folder or hub id of the model whose encoders are used")
    prepare.add_argument("--text-only", action="store_true", help="prompts alone, for training without videos")
    size = prepare.add_argument_group("clips", "default: what the model was made for")
    size.add_argument("--fps", type=_positive_float, help="frames a second to sample at")
    _add_size_arguments(size, frames_help="frames of each clip, from its start")
    prepare.add_argument("--strict", action="store_true", help="fail, before anything is encoded, if any clip would be dropped")
    _add_folder_arguments(prepare, device_help="where the encoders run (default: cuda where there is one, else cpu)")
    prepare.set_defaults(execute=execute_prepare)


def _configure_pairs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    pairs = commands.add_parser(
        "pairs",
        help="sample a teacher, and store the way from noise to video to regress on",
        description="Sample a teacher with its own solver, and store points of the way from noise to latents in parquet files, "
        "for methods that regress on them. A second run continues where the first ended.",
    )
    source = pairs.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--captions",
        type=Path,
        metavar="FILE",
        help="a .txt file (one prompt a line), a .jsonl or .csv file, or a folder of clips",
    )
    source.add_argument("--data", type=Path, metavar="FOLDER", help="take the captions of this prepared data")
    _add_model_arguments(pairs, model_help="folder or hub id of the teacher")
    solver = pairs.add_argument_group("the teacher's solver")
    solver.add_argument("--steps", type=_positive_int, default=48, help="default: 48")
    solver.add_argument("--guidance-scale", type=_scale, default=6.0, help="1 = none; default: 6")
    solver.add_argument(
        "--keep-timesteps",
        type=_timesteps,
        required=True,
        metavar="T,T,...",
        help="the points to store besides the end: the student's ladder, after the flow shift, such as 1000,937.5,833.3,625",
    )
    solver.add_argument("--seed", type=_seed, default=0, help="of the noise; default: 0")
    _add_size_arguments(pairs.add_argument_group("videos", "default: what the model was made for"), frames_help="frames")
    _add_folder_arguments(pairs, device_help="where the teacher runs (default: cuda where there is one, else cpu)")
    pairs.set_defaults(execute=execute_pairs)


def _add_model_arguments(parser: argparse.ArgumentParser, *, model_help: str) -> None:
    parser.add_argument("--family", required=True, help="kind of model, as `fvd plugins list` shows")
    parser.add_argument("--model", required=True, help=model_help)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="set one value of the family's pipeline_config, as in the run file that will train on the data (repeatable)",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="where the prepared data goes")


def _add_size_arguments(group: argparse._ArgumentGroup, *, frames_help: str) -> None:
    group.add_argument("--num-frames", type=_positive_int, help=frames_help)
    group.add_argument("--height", type=_positive_int, help="pixels")
    group.add_argument("--width", type=_positive_int, help="pixels")


def _add_folder_arguments(parser: argparse.ArgumentParser, *, device_help: str) -> None:
    parser.add_argument("--overwrite", action="store_true", help="delete what FOLDER was prepared with before and start anew")
    parser.add_argument("--rows-per-file", type=_positive_int, default=64, help="clips of one parquet file (default: 64)")
    parser.add_argument("--device", help=device_help)


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


def execute_pairs(args: argparse.Namespace) -> int:
    from fvd.config.models import RoleConfig
    from fvd.data.pairs import PairsRequest, make_pairs
    from fvd.roles import RoleManager
    from fvd.runtime import compute_dtype
    from fvd.samplers.sampling import check_plan, load_sampler
    from fvd.validation.request import SamplingPlan

    plan = SamplingPlan(role="teacher", sampler_kind="ode", sampling_steps=(args.steps,), guidance_scale=args.guidance_scale)
    check_plan(plan, args.plugins, args.plugins.spec("family", args.family))
    device = _device(args.device)
    family = _build_family(args, device, compute_dtype(device))
    geometry = _geometry(args, family.build_encoders())
    teacher = family.load_role("teacher", RoleConfig(path=args.model, trainable=False))
    request = PairsRequest(
        source=args.captions or args.data,
        from_data=args.captions is None,
        out=args.out,
        family=args.family,
        model=args.model,
        geometry=geometry,
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        keep=args.keep_timesteps,
        seed=args.seed,
        overwrite=args.overwrite,
        rows_per_file=args.rows_per_file,
    )
    adapter = family.build_adapter(RoleManager([teacher]))
    make_pairs(request, family, teacher, adapter, load_sampler(args.plugins, plan.sampler_kind))
    return 0


def _build_encoders(args: argparse.Namespace) -> Encoders:
    return _build_family(args, _device(args.device), None).build_encoders()


def _build_family(args: argparse.Namespace, device: torch.device, autocast_dtype: torch.dtype | None) -> Family:
    from fvd.families import FamilyContext

    config = _pipeline_config(args.plugins.load_config("family", args.family), args.family, args.overrides)
    family_class: type[Family] = args.plugins.load("family", args.family)
    context = FamilyContext(config=config, components_path=args.model, device=device, autocast_dtype=autocast_dtype)
    return family_class(context)


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
    from fvd.families import ClipPlan

    fps = encoders.default_plan.fps if args.fps is None else args.fps
    return ClipPlan(fps=float(fps), geometry=_geometry(args, encoders))


def _geometry(args: argparse.Namespace, encoders: Encoders) -> VideoGeometry:
    """The family's default with what the command line says instead."""
    from fvd.data.spec import VideoGeometry

    default = encoders.default_plan.geometry
    return VideoGeometry(
        num_frames=default.num_frames if args.num_frames is None else args.num_frames,
        height=default.height if args.height is None else args.height,
        width=default.width if args.width is None else args.width,
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


def _scale(text: str) -> float:
    return 0.0 if _number(text) == 0 else _positive_float(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text!r}")
    return int(text)


def _timesteps(text: str) -> tuple[float, ...]:
    """Descending; a 0, which is the end that is stored in any case, is left out."""
    numbers = [_number(part) for part in text.split(",") if part.strip()]
    timesteps = tuple(sorted({number for number in numbers if number}, reverse=True))
    if not timesteps or not all(0 <= number <= 1000 for number in timesteps):
        raise argparse.ArgumentTypeError(f"must be timesteps above 0 and up to 1000, such as 1000,750,500,250, got {text!r}")
    return timesteps


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number: {text!r}") from None
