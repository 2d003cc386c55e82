"""Weighted means and timestep bins, against the same thing computed over all samples at once."""

from __future__ import annotations

import math

import pytest
import torch
from small_video import SmallVideoAdapter, small_raw_batch, small_roles, small_run

import fvd
from fvd.config.models import MethodConfig
from fvd.errors import PluginError
from fvd.metrics import StepMetrics, WeightedMean, per_bin
from fvd.testing.steps import train_step


def draws(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator), 1000 * torch.rand(count, generator=generator)


def test_micro_batches_of_any_size_give_the_mean_over_all_samples():
    """A mean of means would not: the micro-batches have different shares of each bin."""
    values, t = draws(37)
    metrics = StepMetrics()
    for some, at in zip(values.split((1, 6, 30)), t.split((1, 6, 30)), strict=True):
        for name, value in per_bin("loss", some, at, 1000).items():
            metrics.mean(name, value)
    expected = {}
    for low in range(0, 1000, 200):
        inside = [float(value) for value, at in zip(values, t, strict=True) if low <= at < low + 200]
        expected[f"loss/t_{low}_{low + 200}"] = math.fsum(inside) / len(inside)
    assert metrics.to_host() == pytest.approx(expected, rel=1e-5)


def test_the_ends_of_the_bins():
    t = torch.tensor([0.0, 199.99, 200.0, 999.0, 1000.0])
    binned = per_bin("loss", torch.tensor([1.0, 3.0, 10.0, 20.0, 40.0]), t, 1000)
    assert list(binned) == ["loss/t_0_200", "loss/t_200_400", "loss/t_400_600", "loss/t_600_800", "loss/t_800_1000"]
    assert [float(bin.total) for bin in binned.values()] == [4.0, 10.0, 0.0, 0.0, 60.0]
    assert [float(bin.weight) for bin in binned.values()] == [2.0, 1.0, 0.0, 0.0, 2.0]
    assert list(per_bin("x", t, t, 100, bins=3)) == ["x/t_0_33", "x/t_33_67", "x/t_67_100"]


def test_a_bin_without_samples_is_absent_not_zero_and_keeps_out_of_other_bins():
    values, t = torch.tensor([math.nan, 2.0]), torch.tensor([100.0, 700.0])
    metrics = StepMetrics()
    for name, value in per_bin("loss", values, t, 1000).items():
        metrics.mean(name, value)
    logged = metrics.to_host()
    assert logged.keys() == {"loss/t_0_200", "loss/t_600_800"}
    assert math.isnan(logged["loss/t_0_200"])  # what went wrong is seen where it did
    assert logged["loss/t_600_800"] == 2.0


def test_bins_carry_no_graph():
    values, t = draws(4)
    values.requires_grad_()
    for bin in per_bin("loss", values, t, 1000).values():
        assert not bin.total.requires_grad
        assert not bin.weight.requires_grad
        assert bin.total.ndim == bin.weight.ndim == 0


class Binned(fvd.Method):
    """``spoil`` makes a weighted mean that breaks the contract."""

    role_names = ("student",)
    spoil = ""

    def optimizer_specs(self):
        return {"student": fvd.OptimizerSpec(learning_rate=1e-3)}

    def single_train_step(self, batch, iteration, *, rng):
        prepared = self.adapter.prepare_batch(batch, latents_source="data")
        t = 1000 * rng.rand()
        noise = rng.randn_like(prepared.latents)
        x_t = self.adapter.add_noise(prepared.latents, noise, t)
        prediction = self.adapter.predict(self.roles["student"], x_t, t, prepared.cond)
        errors = (prediction - self.adapter.training_target(prepared.latents, noise, t)).square().flatten(1).mean(dim=1)
        metrics = dict(per_bin("loss", errors, t, 1000, bins=2))
        if self.spoil == "graph":
            metrics["bad"] = WeightedMean(errors.sum(), torch.ones(()))
        if self.spoil == "shape":
            metrics["bad"] = WeightedMean(errors.detach(), torch.ones(()))
        yield fvd.Loss("loss", errors.mean(), role="student", metrics=metrics, counts={"samples": batch.batch_size})


@pytest.fixture
def method():
    roles = small_roles({"student": True})
    return Binned.build(run=small_run(roles, MethodConfig()), roles=roles, adapter=SmallVideoAdapter())


def test_a_step_without_a_trainer_gives_them_too(method):
    logged = train_step(method, small_raw_batch(1, seed=3), 1)
    (bin,) = logged.keys() - {"loss", "samples"}
    assert logged[bin] == pytest.approx(logged["loss"])  # one sample: it is in one bin


@pytest.mark.parametrize(("spoil", "message"), [("graph", "'bad' carries a graph"), ("shape", r"'bad' must be one number")])
def test_the_contract_looks_into_them(method, spoil, message):
    method.spoil = spoil
    with pytest.raises(PluginError, match=message):
        train_step(method, small_raw_batch(2), 1)
