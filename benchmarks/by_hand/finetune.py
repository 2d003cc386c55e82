"""Flow-matching finetuning of a Wan transformer as one writes it by hand: what `fvd run` is measured against.

python benchmarks/by_hand/finetune.py MODEL DATA OUT --steps 40
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel

parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
parser.add_argument("data", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--steps", type=int, required=True)
parser.add_argument("--batch-size", type=int, default=1)
args = parser.parse_args()

torch.manual_seed(0)
random.seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_data() -> tuple[torch.Tensor, torch.Tensor]:
    """All latents, normalised, and all texts, padded to 512 tokens."""
    vae = json.loads((args.model / "vae/config.json").read_text())
    mean, std = (torch.tensor(vae[name]).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    latents, texts = [], []
    for row in pq.read_table(args.data).to_pylist():
        latent = np.frombuffer(row["vae_latent_bytes"], np.float32).reshape(row["vae_latent_shape"])
        text = np.frombuffer(row["text_embedding_bytes"], np.float32).reshape(row["text_embedding_shape"])
        latents.append((torch.tensor(latent) - mean) / std)
        texts.append(F.pad(torch.tensor(text), (0, 0, 0, 512 - len(text))))
    return torch.stack(latents), torch.stack(texts)


def mark(passes: dict[str, int]) -> None:
    """For the benchmark, at the end of a step."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    marks.append({"wall": time.perf_counter(), "cpu": time.process_time(), "passes": passes, "peak": peak})


def batches():
    indices: list[int] = []
    while True:
        while len(indices) < args.batch_size:
            indices += random.sample(range(len(latents)), len(latents))
        chosen, indices = indices[: args.batch_size], indices[args.batch_size :]
        yield latents[chosen].to(device), texts[chosen].to(device)


latents, texts = load_data()
model = WanTransformer3DModel.from_pretrained(args.model / "transformer").to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
args.out.mkdir(parents=True)
log = (args.out / "log.jsonl").open("w")
marks: list[dict[str, object]] = []

stream = batches()
mark({})
for step in range(1, args.steps + 1):
    x0, text = next(stream)
    u = torch.rand(len(x0), device=device)
    sigma = 3 * u / (1 + 2 * u)
    noise = torch.randn_like(x0)
    x_t = torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1, 1))
    velocity = model(x_t, sigma * 1000, text, return_dict=False)[0]
    loss = F.mse_loss(velocity, noise - x0)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    log.write(json.dumps({"step": step, "loss": loss.item(), "grad_norm": norm.item()}) + "\n")
    log.flush()
    mark({"student": 1})

torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, args.out / "checkpoint.pt")
(args.out / "marks.json").write_text(json.dumps(marks))
