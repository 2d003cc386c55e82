"""What the trainer costs: `fvd`'s step against the same mathematics written as a bare loop, on tiny Wan.

    python benchmarks/training_step.py [--steps 40]

Both use the same network class, weights, batch size and optimizer, in one process, in alternating blocks, so that a
busy machine slows both alike. At this size a step is milliseconds, so the ratio is an upper bound of the overhead: at
real sizes the fixed cost per step stays and the network's part grows by orders of magnitude.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import yaml

from fvd.config.load import load_run_file
from fvd.data.parquet import T2V_SCHEMA
from fvd.runtime import Runtime, build_runtime, plan_run
from fvd.signals import StopSignals
from fvd.trackers.base import TrackerGroup
from fvd.trainer import Trainer
from fvd_wan.tiny import make_tiny_wan

BATCH_SIZE = 2


def write_data(folder: Path) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    shapes = {"vae_latent": [16, 3, 8, 8], "text_embedding": [8, 32]}
    rows = []
    for index in range(16):
        row = {"id": str(index), "file_name": "", "caption": "", "media_type": "video", "width": 64, "height": 64}
        row |= {"num_frames": 3, "duration_sec": 0.5, "fps": 16.0}
        for name, shape in shapes.items():
            values = rng.standard_normal(shape).astype(np.float32)
            row |= {f"{name}_bytes": values.tobytes(), f"{name}_shape": shape, f"{name}_dtype": "float32"}
        rows.append(row)
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=T2V_SCHEMA), folder / "data.parquet")


def build_trainer(folder: Path, model: Path) -> Trainer:
    document = {
        "recipe": {"family": "wan", "method": "finetune"},
        "roles": {"student": {"path": str(model)}},
        "training": {
            "output_dir": str(folder / "out"),
            "data_path": str(folder / "data"),
            "max_train_steps": 10**6,
            "train_batch_size": BATCH_SIZE,
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    runtime: Runtime = build_runtime(plan_run(load_run_file(path), resume="auto"))
    return Trainer(runtime, TrackerGroup({}), StopSignals())


def fvd_steps(trainer: Trainer) -> Callable[[], None]:
    batches = iter(trainer.runtime.loader)

    def step() -> None:
        trainer.step += 1
        trainer.train_step(batches)

    return step


def bare_steps(runtime: Runtime) -> Callable[[], None]:
    """Flow matching on one fixed batch that is in memory: no loader, no metrics, no checks."""
    network = copy.deepcopy(runtime.roles["student"].modules["transformer"])
    parameters = [parameter.requires_grad_() for parameter in network.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    batch = runtime.adapter.prepare_batch(next(iter(runtime.loader)), latents_source="data")
    x0, text = batch.latents, batch.cond.embeddings

    def step() -> None:
        sigma = torch.rand(BATCH_SIZE)
        noise = torch.randn_like(x0)
        expanded = sigma[:, None, None, None, None]
        x_t = (1 - expanded) * x0 + expanded * noise
        velocity = network(x_t, 1000 * sigma, text, return_dict=False)[0]
        loss = (velocity - (noise - x0)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def milliseconds(step: Callable[[], None], count: int) -> Iterator[float]:
    for _ in range(count):
        started = time.perf_counter()
        step()
        yield 1e3 * (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of a training step.")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_tiny_wan(folder / "wan-tiny")
        write_data(folder / "data")
        trainer = build_trainer(folder, folder / "wan-tiny")
        candidates = {"fvd": fvd_steps(trainer), "bare loop": bare_steps(trainer.runtime)}
        times: dict[str, list[float]] = {label: [] for label in candidates}
        for step in candidates.values():
            list(milliseconds(step, 5))  # warm-up
        for _ in range(max(1, options.steps // 10)):
            for label, step in candidates.items():
                times[label] += milliseconds(step, 10)
    print(f"finetune, tiny Wan, batch {BATCH_SIZE}, 1 thread    min ms  median ms")
    for label, values in times.items():
        print(f"{label:<44}{min(values):8.2f}  {statistics.median(values):9.2f}")
    fvd, bare = times["fvd"], times["bare loop"]
    print(f"{'ratio':<44}{min(fvd) / min(bare):8.2f}  {statistics.median(fvd) / statistics.median(bare):9.2f}")


if __name__ == "__main__":
    main()
