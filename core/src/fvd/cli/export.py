"""`fvd export RUN_DIR`: the trained weights of one role, in a format that other programs load."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="training.output_dir of a run")
    parser.add_argument("--role", help="default: the role that the method trains for use")
    parser.add_argument(
        "--to", dest="format", metavar="FORMAT", help="default: the first that the family has, such as diffusers"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="a new or empty folder")
    parser.add_argument("--weights", choices=("raw", "ema"), help="as trained, or averaged; default: ema where the run has it")
    parser.add_argument("--step", type=int, help="checkpoint to export; default: the latest")
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    from fvd.errors import FvdError

    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise FvdError(f"--out {args.out} exists and is not an empty folder", cure="Name a new folder.")

    import torch

    from fvd.export import export_role
    from fvd.inference import open_run

    # On the CPU: exporting needs no GPU, where the run may still be busy, and there weights are float32.
    run = open_run(args.run_dir, device=torch.device("cpu"), options=args.plugin_options, step=args.step)
    args.plugins = run.plugins
    formats = run.family_spec.export_formats
    chosen = args.format or formats[0]
    if chosen not in formats:
        raise FvdError(
            f"family {run.family_spec.name} does not export to {chosen!r}", cure=f"It exports to: {', '.join(formats)}."
        )
    role = args.role or run.sampling_plan.role
    weights = run.weights_of(role, args.weights)
    export_role(run, role, args.out, chosen, weights)
    print(f"{args.out}: {role} of step {run.checkpoint.step}, {weights} weights ({chosen})")
    return 0
