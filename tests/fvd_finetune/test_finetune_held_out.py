"""The held-out loss: right against the mathematics of the mixture, the same whatever the batch, and no part of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import fvd
from fvd.cli.main import main
from fvd.config.optimization import EmaSettings
from fvd.data.held_out import HeldOutSamples, split_off
from fvd.data.loader import Loader
from fvd.ema import Ema
from fvd.errors import FvdError
from fvd.rng import seeded_generator
from fvd.testing.steps import train_step
from fvd.testing.toy.data import open_points
from fvd.testing.toy.method import ToyMethod
from fvd.testing.toy.text import mode_weights
from fvd.testing.toy.workbench import toy_batch, toy_family, toy_method
from fvd.validation.held_out import HeldOutLoss
from fvd_finetune.config import FinetuneConfig
from fvd_finetune.method import FinetuneMethod

BINS = {"t_0_200": 100, "t_200_400": 300, "t_400_600": 500, "t_600_800": 700, "t_800_1000": 900}


def held_out_samples(family, count: int) -> HeldOutSamples:
    points = open_points([], family.data_spec(), needs_latents=True)
    return HeldOutSamples.choose(points, family.data_spec(), count, among=split_off(points, seed=0, share=0.3))


def training_data(batch_size: int) -> Loader:
    """What is left."""
    spec = toy_family().data_spec()
    points = open_points([], spec, needs_latents=True)
    return Loader(points, spec, batch_size=batch_size, seed=0, held_out=split_off(points, seed=0, share=0.3))


def on_toy(predicts="velocity", *, trained: bool = True, count: int = 512, **training) -> tuple[FinetuneMethod, HeldOutLoss]:
    family = toy_family(predicts)
    settings = {"train_batch_size": 128, "learning_rate": 3e-3, "weight_decay": 0.0} | training
    method = toy_method(FinetuneMethod, FinetuneConfig(), {"student": trained}, family=family, training=settings)
    return method, HeldOutLoss(method, held_out_samples(family, count), torch.device("cpu"))


def bayes_error(predicts: str, timestep: float, count: int = 40_000) -> float:
    """The least mean squared error of any network at this timestep, from fresh points and the posterior alone: float64."""
    family = toy_family(predicts)
    mixture, time = family.mixture, torch.tensor([timestep / 1000], dtype=torch.float64)
    points = open_points([], family.data_spec(), needs_latents=True)
    texts = [sample.tensors["text_embedding"] for chunk in range(64) for sample in points.read_chunk(chunk)]
    weights = mode_weights(torch.stack(texts)).repeat(count // len(texts) + 1, 1)[:count]
    generator = torch.Generator().manual_seed(11)
    x0 = mixture.sample(count, generator, weights=weights)
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    parametrisation = family.parametrisation()
    alpha, sigma = (coefficient.double().expand(count) for coefficient in parametrisation.signal_and_noise(time))
    x_t = alpha[:, None] * x0 + sigma[:, None] * noise
    posterior = mixture.posterior(x_t, alpha, sigma, weights)
    best = parametrisation.prediction(posterior.x0, posterior.noise)
    return float((best - parametrisation.prediction(x0, noise)).square().mean())


@pytest.mark.parametrize("predicts", ["velocity", "noise"])
def test_the_loss_of_the_exact_denoiser_is_the_bayes_error(predicts):
    """2400 samples: the mean has a standard error of 2 % to 3 %."""
    _, held_out = on_toy(predicts, trained=False, count=2400)
    found = held_out.evaluate()
    for name, timestep in BINS.items():
        assert found[f"validation/loss/{name}"] == pytest.approx(bayes_error(predicts, timestep), rel=0.09), name
    assert found["validation/loss"] == pytest.approx(sum(found[f"validation/loss/{name}"] for name in BINS) / 5)


def test_finetuning_brings_the_loss_of_each_bin_near_the_bayes_error():
    """On samples that it never sees. Where the noise is low, the mixture is hard for so small a network in so few steps."""
    method, held_out = on_toy(learning_rate=1e-2, lr_scheduler="cosine", max_train_steps=500)
    _, exact = on_toy(trained=False)
    before = held_out.evaluate()
    batches = iter(training_data(128))
    for iteration in range(1, 501):
        train_step(method, next(batches), iteration)
    after, least = held_out.evaluate(), exact.evaluate()
    for name in BINS:
        metric = f"validation/loss/{name}"
        gap = (after[metric] - least[metric]) / (before[metric] - least[metric])
        assert -0.02 < gap < 0.35, (name, before[metric], after[metric], least[metric])
    for name in ("t_400_600", "t_600_800", "t_800_1000"):
        assert after[f"validation/loss/{name}"] < 1.12 * least[f"validation/loss/{name}"]


def test_it_is_the_methods_loss_on_noise_of_the_samples_own():
    """Written out sample by sample, in batches of one."""
    method, held_out = on_toy(count=6)
    adapter, handle, samples = method.adapter, method.roles["student"], held_out_samples(toy_family(), 6)
    found = held_out.evaluate()
    for name, timestep in BINS.items():
        total = 0.0
        for [(id, sample)] in samples.batches(1):
            x0 = sample.tensors["vae_latent"][None]
            noise = torch.randn(x0.shape[1:], generator=seeded_generator("validation", id, name))[None]
            sigma = timestep / 1000
            predicted = adapter.predict(
                handle,
                (1 - sigma) * x0 + sigma * noise,
                torch.tensor([float(timestep)]),
                sample.tensors["text_embedding"][None],
            )
            total += float((predicted.double() - (noise - x0).double()).square().mean().detach())
        assert found[f"validation/loss/{name}"] == pytest.approx(total / 6, rel=1e-5)


def test_the_batch_size_changes_rounding_alone():
    one, many = (on_toy(count=40, train_batch_size=size)[1].evaluate() for size in (1, 17))
    assert one.keys() == many.keys()
    for name, value in one.items():
        assert value == pytest.approx(many[name], rel=1e-5)


def test_again_it_is_the_same_and_leaves_no_trace():
    method, held_out = on_toy(count=20)
    handle = method.roles["student"]
    handle.ema = Ema(handle.modules, EmaSettings(decay=0.5))
    train_step(method, toy_batch(toy_family(), 16), 1)
    weights = [parameter.detach().clone() for parameter in handle.trainable_parameters()]
    state = torch.random.get_rng_state()
    first, second = held_out.evaluate(), held_out.evaluate()
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(weights, handle.trainable_parameters(), strict=True))
    assert torch.is_grad_enabled()


def test_averaged_weights_have_a_loss_of_their_own():
    method, held_out = on_toy(count=20)
    handle = method.roles["student"]
    initial = held_out.evaluate()["validation/loss"]
    handle.ema = Ema(handle.modules, EmaSettings(decay=0.5))
    with torch.no_grad():
        for parameter in handle.trainable_parameters():
            parameter.mul_(0.9)
    found = held_out.evaluate()
    assert found["validation/ema/loss"] == pytest.approx(initial, rel=1e-12)
    assert found["validation/loss"] != pytest.approx(initial, rel=1e-3)
    assert len(found) == 2 * (1 + len(BINS))


def test_a_method_without_one_is_told():
    family = toy_family()
    method = toy_method(ToyMethod, fvd.MethodConfig(), {"student": True}, family=family)
    with pytest.raises(FvdError, match=r"has no loss to compute on held-out samples\nRemove training\.validation_split"):
        HeldOutLoss(method, held_out_samples(family, 4), torch.device("cpu")).evaluate()


# --- runs ------------------------------------------------------------------------------------------------------------
def run(folder: Path, name: str, **training: object) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without times and what a process counts for itself."""
    document = {
        "recipe": {"family": "toy", "method": "finetune"},
        "roles": {"student": {"path": "random", "ema": {"decay": 0.5}}},
        "training": {
            "output_dir": str(folder / name),
            "max_train_steps": 4,
            "train_batch_size": 8,
            "learning_rate": 1e-3,
            "validation_steps": 2,
            "validation_samples": 20,
            "training_state_checkpointing_steps": 2,
            **training,
        },
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    assert main(["run", str(folder / f"{name}.yaml")]) == 0
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(("perf/", "health/"))} for row in rows]


def of_training(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "train/loss" in row]


def of_validation(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "validation/loss" in row]


def test_training_is_bit_for_bit_what_it_is_without_the_evaluations(tmp_path):
    """The same split; evaluated at every step, on more samples, or only at the ends."""
    seldom = run(tmp_path, "seldom", validation_split=0.2, validation_steps=0, validation_samples=1)
    often = run(tmp_path, "often", validation_split=0.2, validation_steps=1, validation_samples=50)
    assert of_training(seldom) == of_training(often)
    assert [row["step"] for row in of_validation(often)] == [0, 1, 2, 3, 4]


def test_a_resumed_run_holds_out_the_same_and_validates_each_step_once(tmp_path):
    straight = run(tmp_path, "straight", validation_split=0.2)
    run(tmp_path, "parts", validation_split=0.2, max_train_steps=2)
    parts = run(tmp_path, "parts", validation_split=0.2)
    assert parts == straight
    assert run(tmp_path, "parts", validation_split=0.2) == straight  # nothing is left to do
    assert [row["step"] for row in of_validation(straight)] == [0, 2, 4]


def test_another_split_is_another_run(tmp_path, capfd):
    run(tmp_path, "out", validation_split=0.2, max_train_steps=2)
    (tmp_path / "again.yaml").write_text((tmp_path / "out.yaml").read_text(), encoding="utf-8")
    assert main(["run", str(tmp_path / "again.yaml"), "--set", "training.validation_split=0.3"]) == 1
    assert "training.validation_split: 0.2 -> 0.3" in capfd.readouterr().err


def test_without_samples_held_out_nothing_is_validated(tmp_path):
    assert of_validation(run(tmp_path, "out")) == []


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["validation_split=0.6"], "validation_split"),
        (["validation_data_path=data"], "the family toy makes its data itself, and has no other"),
        (["validation_data_path=data", "validation_split=0.1"], "training.validation_split is given too"),
        (["validation_samples=0"], "validation_samples"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, capfd, settings, complaint):
    run(tmp_path, "out", max_train_steps=0)
    overrides = [argument for setting in settings for argument in ("--set", f"training.{setting}")]
    assert main(["check", str(tmp_path / "out.yaml"), *overrides]) == 1
    assert complaint in "".join(capfd.readouterr())
