"""`fvd sample RUN_DIR`: one video from a trained run."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fvd.adapters import Adapter
    from fvd.inference import TrainedRun


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="training.output_dir of a run")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.mp4")
    parser.add_argument("--negative-prompt", help="default: the family's")
    parser.add_argument("--role", help="whose weights; default: the role that the method trains for use")
    parser.add_argument("--weights", choices=("raw", "ema"), help="as trained, or averaged; default: ema where the run has it")
    parser.add_argument("--step", type=int, help="checkpoint to use; default: the latest")
    parser.add_argument("--seed", type=_seed, default=0)
    parser.add_argument("--sampler", metavar="KIND", help="ode, sde, …; default: what the method is made for")
    parser.add_argument("--steps", type=_positive, help="denoising steps; default: what the method is made for")
    parser.add_argument("--guidance-scale", type=_scale, help="1 = none; default: what the method is made for")
    parser.add_argument("--num-frames", type=_positive)
    parser.add_argument("--height", type=_positive)
    parser.add_argument("--width", type=_positive)
    parser.add_argument("--fps", type=_positive_number, help="of the written video; default: training.validation_fps")
    parser.set_defaults(execute=execute)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 2^63, got {text}")
    return value


def _scale(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number, at least 0, got {text}")
    return value


def _positive_number(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def execute(args: argparse.Namespace) -> int:
    from fvd.errors import FvdError

    if args.out.suffix.lower() != ".mp4":
        raise FvdError(f"--out {args.out}: videos are written as .mp4", cure="Name a file that ends in .mp4.")

    from fvd.data.video import write_video
    from fvd.inference import open_run
    from fvd.roles import RoleManager
    from fvd.runtime import choose_device
    from fvd.samplers.guidance import GuidedModel
    from fvd.samplers.sampling import check_plan, load_sampler, sample_latents

    run = open_run(args.run_dir, device=choose_device(), options=args.plugin_options, step=args.step)
    args.plugins = run.plugins
    plan = run.sampling_plan
    kind = args.sampler or plan.sampler_kind
    # A ladder belongs to the method's own sampler; asking for another number of steps or another loop sets it aside.
    on_ladder = args.steps is None and kind == plan.sampler_kind
    plan = replace(plan, sampler_kind=kind, sampling_timesteps=plan.sampling_timesteps if on_ladder else None)
    check_plan(plan, run.plugins, run.family_spec)
    steps = args.steps or plan.sampling_steps[0]
    guidance_scale = plan.guidance_scale if args.guidance_scale is None else args.guidance_scale
    role = args.role or plan.role
    weights = run.weights_of(role, args.weights)
    handle = run.load_role(role, weights)
    adapter = run.family.build_adapter(RoleManager([handle]))
    shape = _latent_shape(args, run, adapter)
    cond = adapter.encode_prompts([args.prompt])
    uncond = None
    if guidance_scale != 1.0:
        uncond = _unconditional(args, adapter)
    latents = sample_latents(
        GuidedModel(adapter, handle, cond, uncond, guidance_scale),
        sampler=load_sampler(run.plugins, kind),
        shape=shape,
        steps=steps,
        timesteps=plan.sampling_timesteps,
        shift_timesteps=plan.shift_timesteps,
        seeds=[args.seed],
    )
    write_video(args.out, adapter.decode(latents)[0], args.fps or run.config.training.validation_fps)
    how = f"{kind}, {steps} steps, guidance {guidance_scale:g}"
    print(f"{args.out}: {role} of step {run.checkpoint.step}, {weights} weights, {how}")
    return 0


def _unconditional(args: argparse.Namespace, adapter: Adapter) -> object:
    if args.negative_prompt is not None:
        return adapter.encode_prompts([args.negative_prompt])
    adapter.ensure_negative_conditioning()
    return adapter.negative_conditioning(1)


def _latent_shape(args: argparse.Namespace, run: TrainedRun, adapter: Adapter) -> tuple[int, int, int, int]:
    from fvd.data.spec import VideoGeometry
    from fvd.errors import FvdError
    from fvd.video_size import video_geometry

    sizes = {"--num-frames": args.num_frames, "--height": args.height, "--width": args.width}
    missing = [option for option, size in sizes.items() if size is None]
    if not missing:
        return adapter.latent_shape(VideoGeometry(num_frames=args.num_frames, height=args.height, width=args.width))
    if len(missing) < len(sizes):
        raise FvdError(f"{', '.join(missing)}: give all of {', '.join(sizes)} or none")
    if run.latent_shape:
        return run.latent_shape
    geometry = video_geometry(run.config)
    if geometry is None:
        raise FvdError("nothing says how large the video should be", cure=f"Give {', '.join(sizes)}.")
    return adapter.latent_shape(geometry)
