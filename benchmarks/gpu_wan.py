"""Finetuning and DMD2 of Wan 2.1 1.3B with random weights on a GPU: seconds a step, model FLOPs utilisation, peak memory.

    python benchmarks/gpu_wan.py [--videos 81x480x832 33x480x832] [--steps 6] [--peak-tflops 989]
    python benchmarks/gpu_wan.py --dry-run          the same code on the CPU, at a tiny size

The weights are random, since neither time nor memory depends on their values. In DMD2 the student moves at every step (interval
1), with a ladder of 4 and guidance, so that every kind of pass is in it. Activations of trained roles are recomputed in the
backward pass.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import machine, print_table
from inputs import Size, write
from runs import DMD2_ROLES, run_document, save_run_file

from fvd.accounting import Passes
from fvd.config.load import load_run_file
from fvd.pass_counter import PassCounter
from fvd.runtime import build_runtime, plan_run
from fvd.signals import StopSignals
from fvd.trackers.base import TrackerGroup
from fvd.trainer import Trainer

WAN_1_3B = Size(
    layers=30, heads=12, head_dim=128, ffn_dim=8960, freq_dim=256, text_dim=4096, latents=(21, 60, 104), batch_size=1
)
"""The transformer of Wan2.1-T2V-1.3B, as its config.json in diffusers format says."""
DRY = Size(layers=2, heads=2, head_dim=12, ffn_dim=96, freq_dim=32, latents=(3, 8, 8), batch_size=1)
TEXT_TOKENS, PATCH, CHANNELS = 512, 2, 16
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "4090": 165.0}
"""Dense bfloat16 matrix products, by the makers' data sheets; a part of the device's name."""
METHODS: Mapping[str, tuple[Mapping[str, bool], Mapping[str, object]]] = {
    "finetune": ({"student": True}, {}),
    "dmd2": (DMD2_ROLES, {"generator_update_interval": 1, "real_score_guidance_scale": 3.5}),
}


def forward_flops(size: Size) -> float:
    """Floating point operations of one sample's forward pass through a Wan transformer, a multiply-add as two.

    N video tokens (patches of 1 x 2 x 2 latent pixels), L text tokens, width d, feed-forward width f, a layer:

        self-attention   8 N d^2 for q, k, v and output, and 4 N^2 d for scores and values
        cross-attention  4 N d^2 for q and output, 4 L d^2 for k and v, and 4 N L d
        feed-forward     4 N d f

    and once, the patch embedding and the output projection, 4 N d (4 C), and the text projection, 2 L (D d + d^2). Norms,
    modulation and the timestep's embedding are left out, and a backward pass counts as two forward ones, as is usual: Kaplan et
    al. 2020 (arXiv:2001.08361, section 2.1) for matrix products, Chowdhery et al. 2022 (arXiv:2204.02311, appendix B) for
    attention and for model FLOPs utilisation, which does not credit recomputed activations.
    """
    frames, height, width = size.latents
    video, text = frames * (height // PATCH) * (width // PATCH), TEXT_TOKENS
    d, ffn = size.heads * size.head_dim, size.ffn_dim
    self_attention = 8 * video * d**2 + 4 * video**2 * d
    cross_attention = 4 * (video + text) * d**2 + 4 * video * text * d
    ends = 4 * video * d * PATCH**2 * CHANNELS + 2 * text * (size.text_dim * d + d**2)
    return float(size.layers * (self_attention + cross_attention + 4 * video * d * ffn) + ends)


def step_flops(size: Size, passes: Mapping[str, Passes]) -> float:
    """Of the passes of a step, as counted, each of ``size.batch_size`` samples."""
    return size.batch_size * forward_flops(size) * sum(each.forwards + 2 * each.backwards for each in passes.values())


@dataclass(frozen=True)
class Result:
    """seconds: median of a step. peak_gib: of the device's memory, 0 on a CPU. tflops: a second, of the model."""

    seconds: float
    peak_gib: float
    tflops: float


def run(folder: Path, size: Size, method: str, steps: int) -> Result:
    """``steps`` steps after one that is not counted."""
    trainer = build(folder, size, method, steps)
    counter = PassCounter(trainer.runtime.roles)
    on_gpu = trainer.runtime.device.type == "cuda"
    batches = iter(trainer.runtime.loader)
    seconds, flops = [], []
    try:
        for _ in range(steps + 1):
            trainer.step += 1
            counter.start()
            trainer.stopwatch.start_step()
            trainer.train_step(batches)
            seconds.append(trainer.stopwatch.end_step(size.batch_size)["perf/step_seconds"])
            flops.append(step_flops(size, counter.passes(size.batch_size)))
    finally:
        batches.close()
        counter.close()
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
    rates = [done / taken for done, taken in zip(flops[1:], seconds[1:], strict=True)]
    return Result(statistics.median(seconds[1:]), peak, statistics.median(rates) / 1e12)


def build(folder: Path, size: Size, method: str, steps: int) -> Trainer:
    roles, method_config = METHODS[method]
    document = run_document(folder, size, method=method, roles=roles, steps=steps + 1, method_config=method_config)
    document["training"]["output_dir"] = str(folder / f"out-{method}")
    document["training"]["enable_gradient_checkpointing_type"] = "full"
    loaded = load_run_file(save_run_file(folder / f"{method}.yaml", document))
    trainer = Trainer(build_runtime(plan_run(loaded, resume="auto")), TrackerGroup({}), StopSignals())
    trainer.prepare()
    return trainer


def latents_of(video: str) -> tuple[int, int, int]:
    """``81x480x832``, frames by height by width, through Wan's VAE: 4 frames and 8 x 8 pixels are one."""
    frames, height, width = (int(part) for part in video.split("x"))
    return (frames - 1) // 4 + 1, height // 8, width // 8


def peak_tflops(device: str, given: float | None) -> float | None:
    return given or next((peak for name, peak in PEAK_TFLOPS.items() if name in device), None)


def main() -> int:
    parser = argparse.ArgumentParser(description="Training steps of Wan 2.1 1.3B on a GPU.")
    parser.add_argument("--videos", nargs="+", default=["81x480x832", "33x480x832"], help="frames x height x width")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--peak-tflops", type=float, help="of the device, dense bfloat16; known for some")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at a tiny size: figures say nothing")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.dry_run:
        print("Not measured: this machine has no GPU. `--dry-run` goes through the same code on the CPU.")
        return 0
    device = "the CPU, dry run" if options.dry_run else torch.cuda.get_device_name()
    sizes = {"tiny": DRY} if options.dry_run else {one: replace(WAN_1_3B, latents=latents_of(one)) for one in options.videos}
    peak = peak_tflops(device, options.peak_tflops)
    rows = []
    for name, size in sizes.items():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), size)
            for method in options.methods:
                found = run(Path(folder), size, method, options.steps)
                utilisation = f"{100 * found.tflops / peak:.0f} %" if peak else "unknown peak"
                rows.append((method, name, f"{found.seconds:.3f}", f"{found.tflops:.3g}", utilisation, f"{found.peak_gib:.1f}"))
                gc.collect()
                torch.cuda.empty_cache()
    print_table(("method", "video", "s a step", "model TFLOP/s", "utilisation", "peak memory, GiB"), rows)
    print(f"on {device}; {machine()}; median of {options.steps} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
