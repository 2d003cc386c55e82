"""Finetune's loss and gradient against an independent float64 reference; its densities against analytic laws."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError
from small_video import SmallVideoAdapter, small_raw_batch, small_roles, small_run

import fvd
from fvd.config.check import CheckContext
from fvd.testing.steps import step_random, train_step
from fvd.timesteps import mode
from fvd_finetune import plugin
from fvd_finetune.config import FinetuneConfig
from fvd_finetune.method import FinetuneMethod

DENSITIES = [
    {"timestep_density": "uniform"},
    {"timestep_density": "logit_normal"},
    {"timestep_density": "logit_normal", "logit_mean": 0.5, "logit_std": 0.7},
    {"timestep_density": "mode"},
    {"timestep_density": "mode", "mode_scale": 0.4},
]


def build(adapter: fvd.Adapter | None = None, *, flow_shift: float = 3.0, training=None, **config) -> FinetuneMethod:
    roles = small_roles({"student": True}, seed=5)
    run = small_run(roles, FinetuneConfig(**config), method="finetune", flow_shift=flow_shift, training=training)
    return FinetuneMethod.build(run=run, roles=roles, adapter=adapter or SmallVideoAdapter(flow_shift=flow_shift))


def step(method: FinetuneMethod, raw: fvd.RawBatch, *, iteration: int = 1, first_position: int = 0) -> fvd.Loss:
    method.roles["student"].modules["transformer"].zero_grad()
    rng = step_random(iteration, raw.batch_size, first_position=first_position)
    [loss] = list(method.single_train_step(raw, iteration, rng=rng))
    loss.value.backward()
    return loss


def gradient(method: FinetuneMethod) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in method.roles["student"].trainable_parameters()])


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("density", DENSITIES, ids=str)
def test_loss_and_gradient_equal_float64_reference(density, shift, batch_size):
    method, raw = build(flow_shift=shift, **density), small_raw_batch(batch_size)
    net = copy.deepcopy(method.roles["student"].modules["transformer"]).double()
    loss = step(method, raw)

    config, draws = FinetuneConfig(**density), step_random(1, batch_size).per_sample
    losses, sigmas = [], []
    for index, generator in enumerate(draws):
        if config.timestep_density == "logit_normal":
            z = float(torch.randn((), generator=generator))
            u = 1 / (1 + math.exp(-(config.logit_mean + config.logit_std * z)))
        else:
            u = float(torch.rand((), generator=generator))
        if config.timestep_density == "mode":
            u = 1 - u - config.mode_scale * (math.cos(math.pi * u / 2) ** 2 - 1 + u)
        sigma = shift * (1 - u) / (1 + (shift - 1) * (1 - u))
        x0 = raw.tensors["vae_latent"][index].double()
        noise = torch.randn(x0.shape, generator=generator).double()
        x_t = (1 - sigma) * x0 + sigma * noise
        text = raw.tensors["text_embedding"][index].double()
        mask = raw.tensors["text_embedding_mask"][index].double()
        velocity = net(x_t[None], torch.tensor([sigma], dtype=torch.float64), text[None], mask[None])[0]
        losses.append(((velocity - (noise - x0)) ** 2).mean())
        sigmas.append(sigma)
    want = torch.stack(losses).mean()
    want_gradient = torch.cat([g.flatten() for g in torch.autograd.grad(want, list(net.parameters()))])

    assert (loss.name, loss.role, loss.value.dtype) == ("loss", "student", torch.float32)
    torch.testing.assert_close(loss.value.double(), want, rtol=3e-6, atol=0)
    assert (gradient(method).double() - want_gradient).norm() / want_gradient.norm() < 5e-6
    assert float(loss.metrics["sigma"]) == pytest.approx(sum(sigmas) / batch_size, rel=1e-5)


def test_a_batch_is_the_mean_of_its_samples():
    method, raw = build(), small_raw_batch(3)
    step(method, raw)
    together, alone = gradient(method), []
    for index in range(3):
        part = slice(index, index + 1)
        one = fvd.RawBatch({name: value[part] for name, value in raw.tensors.items()}, raw.dropped[part], raw.info[part])
        step(method, one, first_position=index)
        alone.append(gradient(method))
    torch.testing.assert_close(together, torch.stack(alone).mean(dim=0), rtol=1e-5, atol=1e-6)


class NoisePredictingAdapter(SmallVideoAdapter):
    def training_target(self, x0, noise, t):
        return noise


def test_regresses_on_the_adapters_own_target():
    method, raw = build(NoisePredictingAdapter()), small_raw_batch(2)
    loss = step(method, raw)
    rng = step_random(1, 2)
    t = method.adapter.shift_and_clamp_timestep(1000 * (1 - rng.rand()))
    x0 = raw.tensors["vae_latent"]
    noise = rng.randn_like(x0)
    batch = method.adapter.prepare_batch(raw, latents_source="data")
    predicted = method.student.predict(method.adapter.add_noise(x0, noise, t), t, batch.cond)
    torch.testing.assert_close(loss.value, ((predicted - noise) ** 2).mean())


def test_dropped_text_reaches_the_network_as_dropped():
    method, raw = build(), small_raw_batch(2)
    kept = step(method, raw).value.item()
    dropped = fvd.RawBatch(raw.tensors, torch.tensor([True, False]), raw.info)
    assert step(method, dropped).value.item() != kept


def test_training_lowers_the_loss_on_fixed_noise():
    method = build(training={"learning_rate": 1e-2, "weight_decay": 0.0})
    raw = small_raw_batch(2)

    def fixed_loss() -> float:
        return sum(step(method, raw, iteration=1000 + i).value.item() for i in range(8))

    before = fixed_loss()
    for handle in method.roles:
        handle.optimizers["main"].zero_grad()
    for iteration in range(1, 301):
        train_step(method, raw, iteration)
    assert fixed_loss() < 0.8 * before


# --- densities -------------------------------------------------------------------------------------------------------
def sigmas(shift: float = 1.0, count: int = 4000, **density) -> torch.Tensor:
    u = build(**density).sample_u(step_random(1, count))
    assert u.min() >= 0
    assert u.max() <= 1
    return SmallVideoAdapter(flow_shift=shift).shift_and_clamp_timestep(1000 * (1 - u)) / 1000


@pytest.mark.parametrize(("shift", "median"), [(1, 0.5), (3, 0.75), (5, 0.833), (8, 0.889)])
def test_median_noise_level_of_uniform_density(shift, median):
    assert sigmas(shift).median().item() == pytest.approx(median, abs=0.02)


@pytest.mark.parametrize(("mean", "median"), [(1.0, 0.269), (0.0, 0.5), (-1.0, 0.731)])
def test_positive_logit_mean_is_low_noise(mean, median):
    assert sigmas(timestep_density="logit_normal", logit_mean=mean).median().item() == pytest.approx(median, abs=0.02)


def test_logit_std_of_zero_is_one_noise_level():
    assert sigmas(timestep_density="logit_normal", logit_mean=0.0, logit_std=0.0, count=50).unique().tolist() == [0.5]


def test_logit_normal_law():
    sigma = sigmas(timestep_density="logit_normal", logit_mean=0.3, logit_std=0.8).double().sort().values
    u = 1 - sigma
    cdf = 1 - 0.5 * (1 + torch.erf((torch.log(u / (1 - u)) - 0.3) / 0.8 / math.sqrt(2)))
    steps = torch.arange(len(sigma) + 1, dtype=torch.float64) / len(sigma)
    assert max((cdf - steps[:-1]).abs().max(), (steps[1:] - cdf).abs().max()) < 1.63 / math.sqrt(len(sigma))


def test_mode_density():
    r = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.equal(mode(r, 0.0), 1 - r)  # scale 0 is uniform
    for scale in (-1.0, 0.4, 1.29, 1.75):
        u = mode(r, scale)
        torch.testing.assert_close(u[[0, 50, 100]], torch.tensor([1, 0.5, 0], dtype=torch.float64))
        assert (u.diff() <= 1e-12).all()  # monotone: a density
    assert mode(torch.tensor(0.25), 1.29).item() == pytest.approx(0.75 - 1.29 * (0.853553 - 0.75), abs=1e-5)
    # du/dr at the middle is -1 + scale (pi / 2 - 1): with 1.29 the density there is 1 / 0.264 = 3.79 times uniform
    near = mode(torch.tensor([0.4995, 0.5005], dtype=torch.float64), 1.29)
    assert 0.001 / (near[0] - near[1]).item() == pytest.approx(1 / (1 - 1.29 * (math.pi / 2 - 1)), rel=1e-3)


# --- the run file's side ---------------------------------------------------------------------------------------------
def test_optimizer_follows_the_run_file():
    training = {
        "learning_rate": 3e-5,
        "betas": "0.0,0.95",
        "weight_decay": 0.0,
        "lr_scheduler": "polynomial",
        "lr_warmup_steps": 3,
        "lr_num_cycles": 2,
        "lr_power": 2.0,
        "min_lr_ratio": 0.1,
    }
    assert build(training=training).optimizer_specs()["student"] == fvd.OptimizerSpec(
        learning_rate=3e-5,
        betas=(0.0, 0.95),
        weight_decay=0.0,
        lr_scheduler="polynomial",
        lr_warmup_steps=3,
        lr_num_cycles=2,
        lr_power=2.0,
        min_lr_ratio=0.1,
    )


def test_sampling_plan_is_the_run_files():
    plan = FinetuneMethod.sampling_plan(build(training={"validation_sampling_steps": "8", "validation_guidance_scale": 3}).run)
    assert (plan.role, plan.sampler_kind, plan.sampling_steps, plan.sampling_timesteps) == ("student", "ode", (8,), None)
    assert plan.guidance_scale == 3


def test_descriptor_and_settings_load_no_torch():
    code = "import sys, fvd_finetune.plugin as p, fvd_finetune.config; p.fvd_methods(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_old_keys_lead_to_keys_that_exist():
    [spec] = plugin.fvd_methods()
    assert {key.to for key in spec.moved_keys.values()} <= set(FinetuneConfig.model_fields)
    assert spec.moved_keys["weighting_scheme"].values == {"none": "uniform"}
    assert spec.roles["student"].needs == {"predict"}


@pytest.mark.parametrize("key", ["logit_mean", "logit_std", "mode_scale"])
def test_an_explicit_zero_stays_zero(key):
    assert FinetuneConfig(**{key: 0}).model_dump()[key] == 0


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"timestep_density": "cosmap"}, "uniform"),
        ({"logit_std": -1}, "greater than or equal to 0"),
        ({"mode_scale": -1.01}, "greater than or equal to -1"),
        ({"mode_scale": 1.76}, "less than or equal to 1.75"),
        ({"logitmean": 1}, "Extra inputs"),
        ({"attn_kind": "sparse"}, "dense"),
    ],
)
def test_bad_settings_are_refused(settings, complaint):
    with pytest.raises(ValidationError, match=complaint):
        FinetuneConfig(**settings)


@pytest.mark.parametrize(("scale", "inside"), [(-1.0, True), (2 / (math.pi - 2), True), (-1.01, False), (1.76, False)])
def test_the_bounds_of_mode_scale_are_where_u_is_monotone(scale, inside):
    """Esser et al. 2024, section 3.1: u of r must fall from 1 to 0; beyond it turns round, and leaves [0, 1]."""
    u = mode(torch.linspace(0, 1, 10_001, dtype=torch.float64), scale)
    assert bool((u.diff() <= 1e-12).all()) is inside
    if inside:
        assert FinetuneConfig(timestep_density="mode", mode_scale=scale).mode_scale == scale


@pytest.mark.parametrize(("config", "count"), [(FinetuneConfig(attn_kind="vsa"), 1), (fvd.MethodConfig(), 0)])
def test_check_is_silent_about_other_methods_of_the_same_name(config, count):
    [spec] = plugin.fvd_methods()
    run = small_run(small_roles({"student": True}), config, method="acme-ft:finetune")
    small = fvd.FamilySpec(name="small_video", target="s:S", provides=set())
    ctx = CheckContext(run=run, method=spec, families={"student": small}, locate=lambda key: ("run.yaml", 7))
    assert len(plugin.fvd_check_config(ctx)) == count
