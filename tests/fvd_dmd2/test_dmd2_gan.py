"""The adversarial branch of dmd2: its losses and gradients against formulas, whom they reach, its draws, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from torch.nn import functional

import fvd
from fvd.adversarial import generator_loss
from fvd.cli.main import main
from fvd.testing.conformance.runs import read_metrics, read_tensors
from fvd.testing.steps import step_random
from fvd.testing.toy.workbench import toy_batch, toy_family
from fvd_dmd2.gan import GanBranch, build_discriminator, chosen_layers
from fvd_dmd2.gan_config import GanConfig
from fvd_dmd2.scores import Draw

B = 6
CRITIC = {"feature_source": "critic"}


class Bench:
    """The branch on the toy, with a student's samples to look at."""

    def __init__(self, batch_size: int = B, **config: object) -> None:
        self.family = toy_family()
        self.config = GanConfig(**config)
        load = self.family.load_role
        self.student = load("student", fvd.RoleConfig(path="random:1", trainable=True))
        self.roles = {
            "critic": load("critic", fvd.RoleConfig(path="random:2", trainable=True)),
            "teacher": load("teacher", fvd.RoleConfig(path="random:3", trainable=False)),
        }
        self.adapter = self.family.build_adapter(fvd.RoleManager([self.student, *self.roles.values()]))
        self.batch = self.adapter.prepare_batch(toy_batch(self.family, batch_size), latents_source="data")
        self.source = self.adapter.bind(self.roles[self.config.feature_source])
        self.discriminator = build_discriminator("discriminator", self.config, self.source, seed=0)
        self.branch = GanBranch(self.config, self.adapter, self.discriminator, self.source, self.sample_t)
        self.rng = step_random(1, batch_size)
        generator = torch.Generator().manual_seed(4)
        self.shared = Draw(
            1000 * torch.rand(batch_size, generator=generator), torch.randn(batch_size, 2, 1, 1, 1, generator=generator)
        )

    @staticmethod
    def sample_t(rng: fvd.StepRandom) -> torch.Tensor:
        return 200 + 600 * rng.rand()

    def samples(self) -> torch.Tensor:
        """One step of the student from noise, with its graph."""
        noise = step_random(9, self.batch.batch_size).randn_like(self.batch.latents)
        return self.adapter.predict_x0(self.student, noise, torch.full((len(noise),), 999.0), self.batch.cond)

    def logits(self, x0: torch.Tensor, draw: Draw) -> torch.Tensor:
        x_t = self.adapter.add_noise(x0, draw.noise, draw.t)
        features = self.source.features(x_t, draw.t, self.batch.cond, layers=self.branch.layers)
        return self.discriminator.modules["heads"](features)

    def reached(self) -> set[str]:
        handles = [self.student, self.discriminator, *self.roles.values()]
        return {
            handle.name
            for handle in handles
            for module in handle.modules.values()
            if any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
        }


# --- the student's side ---
@pytest.mark.parametrize("source", ["teacher", "critic"])
def test_generator_loss_and_gradient_are_those_of_the_plain_graph(source):
    bench = Bench(feature_source=source, weight_generator=0.25)
    x0 = bench.samples()
    found = bench.branch.generator_loss(x0, bench.batch, bench.rng, bench.shared)
    plain = 0.25 * generator_loss(bench.logits(x0, bench.shared))
    torch.testing.assert_close(found.value, plain)
    torch.testing.assert_close(found.metrics["gan/generator_loss"], plain.detach() / 0.25)
    weights = bench.student.trainable_parameters()
    expected = torch.autograd.grad(plain, weights, retain_graph=True, allow_unused=True)
    for gradient, wanted in zip(torch.autograd.grad(found.value, weights, allow_unused=True), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("config", [{}, CRITIC, CRITIC | {"train_feature_source": True}])
def test_the_generators_gradient_reaches_the_student_alone(config):
    bench = Bench(**config)
    bench.branch.generator_loss(bench.samples(), bench.batch, bench.rng, bench.shared).value.backward()
    assert bench.reached() == {"student"}


def test_a_non_finite_sample_is_dropped_and_the_others_stay():
    bench = Bench()
    x0 = bench.samples().detach()
    whole = x0.clone().requires_grad_()
    bench.branch.generator_loss(whole, bench.batch, bench.rng, bench.shared).value.backward()
    broken = x0.clone()
    broken[2] = float("nan")
    broken.requires_grad_()
    found = bench.branch.generator_loss(broken, bench.batch, bench.rng, bench.shared)
    found.value.backward()
    assert torch.isfinite(found.value)
    kept = [0, 1, 3, 4, 5]
    torch.testing.assert_close(broken.grad[kept], whole.grad[kept])
    assert not broken.grad[2].any()


def test_weight_zero_is_no_gradient():
    bench = Bench(weight_generator=0.0)
    x0 = bench.samples().detach().requires_grad_()
    found = bench.branch.generator_loss(x0, bench.batch, bench.rng, bench.shared)
    found.value.backward()
    assert found.value == 0
    assert not x0.grad.any()
    assert found.metrics["gan/generator_loss"] > 0


# --- the discriminator's side ---
def test_discriminator_loss_is_its_formula():
    bench = Bench(weight_discriminator=2.0)
    x0 = bench.samples().detach()
    found = bench.branch.discriminator_loss(x0, bench.batch.latents, bench.batch, bench.rng, bench.shared)
    fake, real = bench.logits(x0, bench.shared), bench.logits(bench.batch.latents, bench.shared)
    loss = functional.softplus(fake).mean() + functional.softplus(-real).mean()
    torch.testing.assert_close(found.value, 2 * loss)
    torch.testing.assert_close(found.metrics["gan/discriminator_loss"], loss.detach())
    torch.testing.assert_close(found.metrics["gan/logit_fake"], fake.mean().detach())
    torch.testing.assert_close(found.metrics["gan/logit_real"], real.mean().detach())
    assert not any(value.requires_grad for value in found.metrics.values())


@pytest.mark.parametrize("r1", [{}, {"r1_weight": 1.0}, {"r1_weight": 1.0, "r1": "exact"}])
@pytest.mark.parametrize(
    ("config", "reached"),
    [
        ({}, {"discriminator"}),
        (CRITIC, {"discriminator"}),
        (CRITIC | {"train_feature_source": True}, {"discriminator", "critic"}),
    ],
)
def test_whom_the_discriminators_gradient_reaches(config, reached, r1):
    if r1.get("r1") == "exact" and config == CRITIC:
        with pytest.raises(ValidationError, match="train_feature_source: true"):
            GanConfig(**config, **r1)
        return
    bench = Bench(**config, **r1)
    x0 = bench.samples()
    found = bench.branch.discriminator_loss(x0, bench.batch.latents, bench.batch, bench.rng, bench.shared)
    found.value.backward()
    assert bench.reached() == reached
    assert ("gan/r1" in found.metrics) == bool(r1)


def test_approximate_r1_looks_at_perturbed_data_through_the_same_noise():
    bench = Bench(r1_weight=3.0, r1_alpha=0.2)
    x0, real = bench.samples().detach(), bench.batch.latents
    found = bench.branch.discriminator_loss(x0, real, bench.batch, step_random(1, B), bench.shared)
    perturbed = real + 0.2 * step_random(1, B).randn_like(real)
    penalty = (bench.logits(real, bench.shared) - bench.logits(perturbed, bench.shared)).square().mean()
    torch.testing.assert_close(found.metrics["gan/r1"], penalty.detach())
    torch.testing.assert_close(found.value.detach(), found.metrics["gan/discriminator_loss"] + 3 * penalty.detach())


def test_exact_r1_is_the_slope_at_the_noised_data():
    bench = Bench(r1_weight=1.0, r1="exact")
    real, draw = bench.batch.latents, bench.shared
    found = bench.branch.discriminator_loss(bench.samples().detach(), real, bench.batch, bench.rng, draw)
    x_t = bench.adapter.add_noise(real, draw.noise, draw.t)
    heads, step = bench.discriminator.modules["heads"], 1e-2

    @torch.no_grad()
    def logit(x_t):
        return heads(bench.source.features(x_t, draw.t, bench.batch.cond, layers=bench.branch.layers)).double()

    slopes = []
    for axis in range(2):
        moved = torch.zeros_like(x_t)
        moved[:, axis] = step
        slopes.append((logit(x_t + moved) - logit(x_t - moved)) / (2 * step))
    expected = sum(slope.square() for slope in slopes).mean()
    torch.testing.assert_close(found.metrics["gan/r1"].double(), expected, rtol=0.02, atol=1e-6)


# --- draws ---
def draws_of(config: dict[str, object]) -> tuple[list[str], list[str]]:
    """The names of the draws that the student's and the discriminator's loss make."""
    bench, made = Bench(**config), []

    class Counting(fvd.StepRandom):
        def rand(self):
            made.append("t")
            return super().rand()

        def randn_like(self, reference):
            made.append("noise")
            return super().randn_like(reference)

    rng = Counting(bench.rng.shared, bench.rng.per_sample, bench.rng.device)
    bench.branch.generator_loss(bench.samples(), bench.batch, rng, bench.shared)
    of_generator = list(made)
    made.clear()
    bench.branch.discriminator_loss(bench.samples().detach(), bench.batch.latents, bench.batch, rng, bench.shared)
    return of_generator, made


@pytest.mark.parametrize(
    ("config", "of_generator", "of_discriminator"),
    [
        ({}, [], []),
        ({"real_timestep": "own"}, [], ["t", "noise"]),
        ({"timestep": "score"}, ["t", "noise"], ["t", "noise"]),
        ({"timestep": "uniform", "real_timestep": "own"}, ["t", "noise"], ["t", "noise", "t", "noise"]),
        ({"timestep": "clean", "real_timestep": "own"}, [], []),
        ({"r1_weight": 1.0}, [], ["noise"]),
        ({"r1_weight": 1.0, "r1": "exact"}, [], []),
    ],
)
def test_draws_are_made_only_where_they_are_needed(config, of_generator, of_discriminator):
    assert draws_of(config) == (of_generator, of_discriminator)


@pytest.mark.parametrize(("timestep", "lowest", "highest"), [("score", 200, 800), ("uniform", 0, 1000)])
def test_timesteps_lie_where_the_run_file_says(timestep, lowest, highest, monkeypatch):
    bench = Bench(timestep=timestep, batch_size=256)
    seen = []
    features = bench.adapter.features
    monkeypatch.setattr(bench.adapter, "features", lambda *args, **kw: seen.append(args[2]) or features(*args, **kw))
    bench.branch.generator_loss(bench.samples(), bench.batch, bench.rng, bench.shared)
    [t] = seen
    assert lowest <= t.min() < lowest + 30
    assert highest - 30 < t.max() <= highest


def test_clean_is_the_sample_itself(monkeypatch):
    bench = Bench(timestep="clean")
    seen = []
    features = bench.adapter.features
    monkeypatch.setattr(bench.adapter, "features", lambda *args, **kw: seen.append(args[1:3]) or features(*args, **kw))
    x0 = bench.samples().detach()
    bench.branch.discriminator_loss(x0, bench.batch.latents, bench.batch, bench.rng, bench.shared)
    for (x_t, t), expected in zip(seen, (x0, bench.batch.latents), strict=True):
        assert torch.equal(x_t, expected)
        assert not t.any()


def test_a_sample_depends_on_no_other():
    whole, alone = Bench(timestep="uniform"), Bench(timestep="uniform")
    x0 = whole.samples().detach()
    first = x0.clone().requires_grad_()
    whole.branch.generator_loss(first, whole.batch, step_random(1, B), whole.shared).value.backward()
    second = x0[:1].clone().requires_grad_()
    one = fvd.Batch(alone.batch.latents[:1], alone.batch.cond[:1], None)
    rng = fvd.StepRandom(*(lambda r: (r.shared, r.per_sample[:1], r.device))(step_random(1, B)))
    alone.branch.generator_loss(second, one, rng, alone.shared).value.backward()
    torch.testing.assert_close(B * first.grad[:1], second.grad, rtol=1e-4, atol=1e-8)


# --- settings ---
def test_layers_follow_the_network_of_the_source():
    bench = Bench(layers=[0, 1])
    assert chosen_layers(bench.config, bench.source) == (0, 1)
    assert bench.branch.layers == (0, 1)
    assert bench.logits(bench.samples(), bench.shared).shape == (B, 2)
    with pytest.raises(fvd.FvdError, match="2 is not a block of the teacher, which has 2"):
        Bench(layers=[0, 2])


def test_the_exact_denoiser_is_no_source_of_features():
    family = toy_family()
    teacher = family.load_role("teacher", fvd.RoleConfig(path="analytic", trainable=False))
    view = family.build_adapter(fvd.RoleManager([teacher])).bind(teacher)
    with pytest.raises(fvd.FvdError, match="exact denoiser"):
        build_discriminator("discriminator", GanConfig(), view, seed=0)


def test_the_discriminator_follows_from_the_seed():
    one, same, other = (Bench() for _ in range(3))
    other.discriminator = build_discriminator("discriminator", other.config, other.source, seed=1)
    weights = [bench.discriminator.trainable_parameters()[2] for bench in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"train_feature_source": True}, "the teacher is frozen"),
        ({"layers": []}, "at least 1"),
        ({"weight_generator": -1}, "greater than or equal to 0"),
        ({"timesteps": "shared"}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(config, said):
    with pytest.raises(ValidationError, match=said):
        GanConfig(**config)


# --- learning ---
def learn(bench: Bench, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two players on points of the mixture: a "student" that has learnt a wrong shift and spread of it, and the discriminator.
    Returns the student's (shift, spread) before and after."""
    student = torch.nn.Parameter(torch.tensor([1.5, -1.0, 0.5]))
    players = [
        torch.optim.Adam([student], lr=0.03, betas=(0.0, 0.99)),
        torch.optim.Adam(bench.discriminator.trainable_parameters(), lr=2e-3, betas=(0.0, 0.99)),
    ]
    before, count = student.detach().clone(), bench.batch.batch_size
    for step in range(steps):
        rng = step_random(step, count)
        real = bench.adapter.prepare_batch(toy_batch(bench.family, count, first=count * step), latents_source="data").latents
        batch = fvd.Batch(real, bench.adapter.encode_prompts([""] * count), None)  # any mode
        shared = Draw(bench.sample_t(rng), rng.randn_like(real))
        fake = student[2] * real.roll(1, dims=0) + student[None, :2, None, None, None]
        losses = (
            bench.branch.generator_loss(fake, batch, rng, shared),
            bench.branch.discriminator_loss(fake.detach(), real, batch, rng, shared),
        )
        for loss, player in zip(losses, players, strict=True):
            player.zero_grad()
            loss.value.backward()
            player.step()
    return before, student.detach()


@pytest.mark.parametrize("config", [{}, {"timestep": "uniform", "real_timestep": "own", "r1_weight": 1.0}])
def test_the_branch_alone_brings_a_wrong_student_to_the_mixture(config):
    before, after = learn(Bench(weight_generator=1.0, layers=[0, 1], batch_size=64, **config), 100)
    truth = torch.tensor([0.0, 0.0, 1.0])
    assert (before - truth).norm() > 1.8
    assert (after - truth).norm() < 0.5


@pytest.mark.parametrize("r1", [{"r1": "approximate"}, {"r1": "exact"}])
def test_r1_flattens_the_discriminator_at_the_data(r1):
    slopes = {}
    for weight in (0.0, 30.0):
        bench = Bench(batch_size=64, r1_weight=weight, **r1)
        optimizer = torch.optim.Adam(bench.discriminator.trainable_parameters(), lr=2e-3)
        x0, real = bench.samples().detach(), bench.batch.latents
        for step in range(80):
            optimizer.zero_grad()
            bench.branch.discriminator_loss(x0, real, bench.batch, step_random(step, 64), bench.shared).value.backward()
            optimizer.step()
        x_t = bench.adapter.add_noise(real, bench.shared.noise, bench.shared.t).requires_grad_()
        features = bench.source.features(x_t, bench.shared.t, bench.batch.cond, layers=bench.branch.layers)
        (slope,) = torch.autograd.grad(bench.discriminator.modules["heads"](features).sum(), x_t)
        slopes[weight] = slope.square().flatten(1).sum(dim=1).mean().item()
    assert slopes[30.0] < 0.4 * slopes[0.0]


# --- a run ---
def write(folder: Path, output: str, *, teacher: str = "random:3", steps: int = 4, gan: dict[str, Any] | None = None) -> Path:
    document = {
        "recipe": {"family": "toy", "method": "dmd2"},
        "roles": {
            "student": {"path": "random"},
            "teacher": {"path": teacher},
            "critic": {"path": "random"},
            "discriminator": {},
        },
        "training": {
            "output_dir": str(folder / output),
            "max_train_steps": steps,
            "train_batch_size": 8,
            "training_state_checkpointing_steps": 2,
        },
        "method_config": {"dmd_denoising_steps": [1000, 500], "generator_update_interval": 2, "gan": gan or {}},
    }
    path = folder / f"{output}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("teacher", "gan"),
    [
        ("random:3", {}),
        ("random:3", {"timestep": "uniform", "real_timestep": "own", "r1_weight": 1.0, "r1": "exact"}),
        ("analytic", {"feature_source": "critic", "train_feature_source": True, "r1_weight": 1.0}),
    ],
)
def test_a_run_trains_the_discriminator_and_resumes(tmp_path, teacher, gan):
    assert main(["run", str(write(tmp_path, "straight", teacher=teacher, gan=gan))]) == 0
    for steps in (2, 4):
        assert main(["run", str(write(tmp_path, "halves", teacher=teacher, gan=gan, steps=steps))]) == 0
    one, other = (read_tensors(tmp_path / name / "checkpoints" / "step-00000004") for name in ("straight", "halves"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any("discriminator" in name and "heads" in name for name in one)
    rows = [row for row in read_metrics(tmp_path / "straight") if "train/discriminator_loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    # At random heads nothing is known: both sides of log 2.
    assert rows[0]["train/gan/discriminator_loss"] == pytest.approx(1.386, abs=0.5)
    assert ["train/gan/generator_loss" in row for row in rows] == [False, True, False, True]


def test_the_exact_denoiser_as_source_is_refused_with_the_cure(tmp_path, capsys):
    assert main(["run", str(write(tmp_path, "run", teacher="analytic"))]) == 1
    said = capsys.readouterr().err
    assert "exact denoiser" in said
    assert "take the features from another one" in said


def test_exact_r1_and_a_recomputed_critic_are_refused(tmp_path, capsys):
    gan = {"feature_source": "critic", "train_feature_source": True, "r1_weight": 1.0, "r1": "exact"}
    path, recompute = write(tmp_path, "run", gan=gan), "training.enable_gradient_checkpointing_type=full"
    assert main(["check", str(path)]) == 0
    capsys.readouterr()
    assert main(["check", str(path), "--set", recompute]) == 1
    assert "method_config.gan.r1: exact does not go together" in "".join(capsys.readouterr())
