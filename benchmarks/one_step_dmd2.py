"""DMD2 on a distribution that is known exactly: how near a student of one step comes to it, seed by seed.

    python benchmarks/one_step_dmd2.py --seeds 5

The data are eight Gaussians on a circle (`fvd.testing.toy`), once with networks that predict the velocity and once with
networks that predict noise. A small network is finetuned on points without captions; it starts both student and critic, and
the exact denoiser is the teacher. One number judges them all, the energy distance to the true distribution: of the finetuned
network in one step, of the student that it becomes, of four steps likewise, and beside it of the exact teacher at 4 and at 50
steps of Euler's method. `tests/test_toy_proofs.py` asserts what this prints.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from common import machine, print_table
from torch import Tensor

import fvd
from fvd.samplers.guidance import GuidedModel
from fvd.samplers.sde import sample_sde
from fvd.testing.steps import train_step
from fvd.testing.toy.family import MixtureFamily
from fvd.testing.toy.mixture import energy_distance
from fvd.testing.toy.workbench import toy_batch, toy_family, toy_method, toy_samples
from fvd.validation.weights import in_use
from fvd_dmd2.config import DMD2Config
from fvd_dmd2.method import DMD2Method
from fvd_finetune.config import FinetuneConfig
from fvd_finetune.method import FinetuneMethod

Predicts = Literal["velocity", "noise"]

POINTS = 4000
"""Drawn of each distribution that is compared: two draws of the truth are 0.000 ± 0.001 apart."""

ONE_STEP: dict[Predicts, tuple[float, ...]] = {"velocity": (1000.0,), "noise": (750.0,)}
FOUR_STEPS: dict[Predicts, tuple[float, ...]] = {
    "velocity": (1000.0, 750.0, 500.0, 250.0),
    "noise": (750.0, 600.0, 400.0, 200.0),
}
SCORES: dict[Predicts, dict[str, float]] = {"velocity": {}, "noise": {"max_timestep_ratio": 0.75}}
"""Ladders, and where scores are compared. At the end of the DDPM schedule the signal is 0.006 of x_t, and a loss on noise asks
next to nothing of x0 there, of the finetuned network as of the critic. So the student starts from pure noise and is told an
earlier timestep (399 in official DMD2's one-step SDXL), and no scores are compared above it."""
FOUR_STEP_SETTINGS = {"steps": 800, "generator_update_interval": 2}
"""Four rungs share the student's updates, and want more of them."""


def true_points(family: MixtureFamily, seed: int = 99) -> Tensor:
    return family.mixture.sample(POINTS, torch.Generator().manual_seed(seed))


def distance(points: Tensor, family: MixtureFamily) -> float:
    """Energy distance of points [N, 2] to the true distribution."""
    return energy_distance(points, true_points(family))


def batches_without_captions(family: MixtureFamily, size: int) -> list[fvd.RawBatch]:
    """Different points of the whole mixture: every caption is dropped."""
    batches = [toy_batch(family, size, first=first) for first in range(0, 8192, size)]
    return [replace(batch, dropped=torch.ones_like(batch.dropped)) for batch in batches]


def train(method: fvd.Method, batches: Sequence[fvd.RawBatch]) -> None:
    """For as many steps as the run says."""
    for iteration in range(1, method.run.training.max_train_steps + 1):
        train_step(method, batches[iteration % len(batches)], iteration)


def finetuned(family: MixtureFamily, folder: Path, *, seed: int = 0, steps: int = 600) -> FinetuneMethod:
    """A random network learns the mixture by finetuning, and is exported to ``folder``."""
    training = {"learning_rate": 5e-3, "lr_scheduler": "cosine", "max_train_steps": steps, "seed": seed}
    roles = {"student": {"path": f"random:{seed}"}}
    method = toy_method(FinetuneMethod, FinetuneConfig(), {"student": True}, family=family, training=training, roles=roles)
    train(method, batches_without_captions(family, 256))
    folder.mkdir(parents=True)
    family.export(method.roles["student"], folder, "toy")
    return method


def dmd2(
    family: MixtureFamily, start: Path, ladder: Sequence[float], *, seed: int = 0, steps: int = 1500, **config: object
) -> DMD2Method:
    """DMD2 before its first step: student and critic have the weights in ``start``, the teacher is exact and not guided.
    config: further keys of ``method_config:``."""
    settings = DMD2Config.model_validate({"dmd_denoising_steps": ladder, "real_score_guidance_scale": 0.0, **config})
    roles = {
        "student": {"path": str(start), "optimizer": {"learning_rate": 1e-3, "lr_scheduler": "cosine"}, "ema": {"decay": 0.95}},
        "critic": {"path": str(start), "optimizer": {"learning_rate": 1e-3}},
    }
    trainable = {"student": True, "teacher": False, "critic": True}
    training = {"max_train_steps": steps, "seed": seed}
    return toy_method(DMD2Method, settings, trainable, family=family, training=training, roles=roles)


def distil(
    family: MixtureFamily, start: Path, ladder: Sequence[float], *, seed: int = 0, steps: int = 1500, **config: object
) -> DMD2Method:
    """`dmd2`, trained."""
    method = dmd2(family, start, ladder, seed=seed, steps=steps, **config)
    train(method, batches_without_captions(family, 128))
    return method


def student_points(method: DMD2Method) -> Tensor:
    """What the student makes on its ladder from pure noise, with the average of its weights, as `fvd sample` does."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(POINTS)]
    noise = torch.stack([torch.randn(2, 1, 1, 1, generator=generator) for generator in generators])
    student = method.roles["student"]
    model = GuidedModel(method.adapter, student, method.adapter.encode_prompts([""] * POINTS), None)
    with in_use(student, "ema"):
        return sample_sde(model, noise, scheduler=None, timesteps=method.ladder, generators=generators).flatten(1)


def exact_points(family: MixtureFamily, steps: int) -> Tensor:
    """The exact teacher's, by Euler's method."""
    teacher = family.load_role("teacher", fvd.RoleConfig(path="analytic", trainable=False))
    return toy_samples(family.build_adapter(fvd.RoleManager([teacher])), teacher, POINTS, steps=steps)


@dataclass(frozen=True)
class Gain:
    """Energy distances to the truth before and after distillation."""

    before: float
    after: float

    @property
    def ratio(self) -> float:
        return self.before / self.after


def gain(
    family: MixtureFamily, start: Path, ladder: Sequence[float], *, seed: int = 0, steps: int = 1500, **config: object
) -> Gain:
    before = distance(student_points(dmd2(family, start, ladder)), family)
    return Gain(before, distance(student_points(distil(family, start, ladder, seed=seed, steps=steps, **config)), family))


def report(predicts: Predicts, seeds: Sequence[int], steps: int) -> None:
    family = toy_family(predicts)
    rows = []
    for seed in seeds:
        started = time.process_time()
        with tempfile.TemporaryDirectory() as name:
            method = finetuned(family, Path(name) / "start", seed=seed)
            start = distance(toy_samples(method.adapter, method.roles["student"], POINTS), family)
            one = gain(family, Path(name) / "start", ONE_STEP[predicts], seed=seed, steps=steps, **SCORES[predicts])
            four = gain(family, Path(name) / "start", FOUR_STEPS[predicts], seed=seed, **FOUR_STEP_SETTINGS, **SCORES[predicts])
        figures = [f"{figure:.4f}" for figure in (start, one.before, one.after)]
        rows.append([seed, *figures, f"{one.ratio:.0f}", f"{four.before:.4f}", f"{four.after:.4f}", f"{four.ratio:.0f}"])
        rows[-1].append(f"{time.process_time() - started:.0f} s")
    exact = ", ".join(f"{distance(exact_points(family, count), family):.4f} at {count} steps" for count in (4, 50))
    two_draws = energy_distance(true_points(family, 7), true_points(family))
    print(f"Networks predict {predicts}. Energy distance of the exact teacher: {exact}; of the truth itself: {two_draws:.4f}")
    headers = ["seed", "finetuned, 50 steps", "1 step before", "after", "ratio", "4 steps before", "after", "ratio", "CPU"]
    print_table(headers, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Energy distance to a known distribution, before and after DMD2.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1500, help="of the distillation to one step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}\n")
    for predicts in get_args(Predicts):
        report(predicts, range(options.seeds), options.steps)


if __name__ == "__main__":
    main()
