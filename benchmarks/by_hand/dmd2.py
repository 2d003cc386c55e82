"""DMD2 on a Wan transformer as one writes it by hand: what `fvd run` is measured against.

    python benchmarks/by_hand/dmd2.py MODEL DATA OUT --steps 40

The student's rollout from noise ends at a random step of its ladder and serves both losses.
"""

from __future__ import annotations

import argparse
import copy
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
from transformers import AutoTokenizer, UMT5EncoderModel

LADDER = [1000.0, 937.5, 833.3333, 625.0]
GUIDANCE_SCALE = 4.5
NEGATIVE_PROMPT = "blurry, static, low quality"

parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
parser.add_argument("data", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--steps", type=int, required=True)
parser.add_argument("--batch-size", type=int, default=1)
parser.add_argument("--student-every", type=int, default=5)
args = parser.parse_args()

torch.manual_seed(0)
random.seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_data() -> tuple[torch.Size, torch.Tensor]:
    """The shape of latents, and all texts, padded to 512 tokens."""
    texts = []
    for row in pq.read_table(args.data).to_pylist():
        text = np.frombuffer(row["text_embedding_bytes"], np.float32).reshape(row["text_embedding_shape"])
        texts.append(F.pad(torch.tensor(text), (0, 0, 0, 512 - len(text))))
    return torch.Size([args.batch_size, *row["vae_latent_shape"]]), torch.stack(texts)


def encode(prompt: str) -> torch.Tensor:
    """[batch, 512, D], zeros where the prompt ends."""
    tokenizer = AutoTokenizer.from_pretrained(args.model / "tokenizer")
    encoder = UMT5EncoderModel.from_pretrained(args.model / "text_encoder")
    tokens = tokenizer([prompt], padding="max_length", max_length=512, truncation=True, return_tensors="pt")
    with torch.no_grad():
        embedding = encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    embedding[:, int(tokens.attention_mask.sum()) :] = 0
    return embedding.expand(args.batch_size, -1, -1).to(device)


def mark(passes: dict[str, int]) -> None:
    """For the benchmark, at the end of a step."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    marks.append({"wall": time.perf_counter(), "cpu": time.process_time(), "passes": passes, "peak": peak})


def batches():
    indices: list[int] = []
    while True:
        while len(indices) < args.batch_size:
            indices += random.sample(range(len(texts)), len(texts))
        chosen, indices = indices[: args.batch_size], indices[args.batch_size :]
        yield texts[chosen].to(device)


def velocity(name: str, x_t: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    passes[name] += len(x_t) // args.batch_size
    return roles[name](x_t, t, text, return_dict=False)[0]


def predict_x0(name: str, x_t: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return x_t - (t / 1000).view(-1, 1, 1, 1, 1) * velocity(name, x_t, t, text)


def add_noise(x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.lerp(x0, noise, (t / 1000).view(-1, 1, 1, 1, 1))


def score_timestep() -> torch.Tensor:
    u = torch.rand(args.batch_size, device=device)
    return (1000 * 3 * u / (1 + 2 * u)).clamp(20, 980)


def update(name: str) -> torch.Tensor:
    norm = torch.nn.utils.clip_grad_norm_(roles[name].parameters(), 1.0)
    optimizers[name].step()
    optimizers[name].zero_grad()
    return norm


shape, texts = load_data()
negative = encode(NEGATIVE_PROMPT)
roles = {
    name: WanTransformer3DModel.from_pretrained(args.model / "transformer").to(device)
    for name in ("student", "teacher", "critic")
}
roles["teacher"].requires_grad_(False)
average = copy.deepcopy(roles["student"]).requires_grad_(False)
optimizers = {
    name: torch.optim.AdamW(roles[name].parameters(), lr=1e-5, weight_decay=0.01, fused=True) for name in ("student", "critic")
}
args.out.mkdir(parents=True)
log = (args.out / "log.jsonl").open("w")
marks: list[dict[str, object]] = []
ladder = torch.tensor(LADDER, device=device)[:, None].expand(-1, args.batch_size)

stream = batches()
mark({})
for step in range(1, args.steps + 1):
    passes = dict.fromkeys(roles, 0)
    text = next(stream)
    student_is_due = step % args.student_every == 0
    row: dict[str, float] = {"step": step}

    exit_step = random.randrange(len(LADDER))
    x_t = torch.randn(shape, device=device)
    with torch.no_grad():
        for earlier in range(exit_step):
            x0 = predict_x0("student", x_t, ladder[earlier], text)
            x_t = add_noise(x0, torch.randn_like(x0), ladder[earlier + 1])
    with torch.set_grad_enabled(student_is_due):
        x0 = predict_x0("student", x_t, ladder[exit_step], text)

    if student_is_due:
        with torch.no_grad():
            t = score_timestep()
            x_t = add_noise(x0, torch.randn_like(x0), t)
            fake = predict_x0("critic", x_t, t, text)
            both = predict_x0("teacher", x_t.repeat(2, 1, 1, 1, 1), t.repeat(2), torch.cat([text, negative]))
            cond, uncond = both.chunk(2)
            real = uncond + GUIDANCE_SCALE * (cond - uncond)
            normalizer = (x0 - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1e-5)
            target = x0 - torch.nan_to_num((fake - real) / normalizer)
        student_loss = 0.5 * F.mse_loss(x0, target)
        student_loss.backward()
        row |= {"student_norm": update("student"), "student_loss": student_loss}
        torch._foreach_lerp_(list(average.parameters()), list(roles["student"].parameters()), 0.01)
        x0 = x0.detach()

    t, noise = score_timestep(), torch.randn_like(x0)
    critic_loss = F.mse_loss(velocity("critic", add_noise(x0, noise, t), t, text), noise - x0)
    critic_loss.backward()
    row |= {"critic_norm": update("critic"), "critic_loss": critic_loss}

    log.write(json.dumps({name: float(value) for name, value in row.items()}) + "\n")
    log.flush()
    mark(passes)

checkpoint = {name: (roles[name].state_dict(), optimizers[name].state_dict()) for name in optimizers}
checkpoint["average"] = average.state_dict()
torch.save(checkpoint, args.out / "checkpoint.pt")
(args.out / "marks.json").write_text(json.dumps(marks))
