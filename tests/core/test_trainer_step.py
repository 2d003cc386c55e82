"""The trainer's step on small videos: what is added up, clipped, skipped and refused."""

from __future__ import annotations

import itertools
import math
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from small_video import SmallVideoAdapter, small_raw_batch, small_roles, small_run

import fvd
from fvd.config.models import MethodConfig
from fvd.errors import PluginError
from fvd.metrics import StepMetrics
from fvd.signals import StopSignals
from fvd.trackers.base import TrackerGroup
from fvd.trainer import Trainer


class Regress(fvd.Method):
    """The simplest method; ``spoil`` is what a badly written one would do."""

    role_names = ("student",)
    spoil = ""

    def single_train_step(self, batch, iteration, *, rng) -> Iterator[fvd.Loss]:
        prepared = self.adapter.prepare_batch(batch, latents_source="data")
        t = 1000 * rng.rand()
        noise = rng.randn_like(prepared.latents)
        x_t = self.adapter.add_noise(prepared.latents, noise, t)
        prediction = self.adapter.predict(self.roles["student"], x_t, t, prepared.cond)
        value = (prediction - self.adapter.training_target(prepared.latents, noise, t)).square().mean()
        if self.spoil == "nan":
            value = value * math.nan
        if self.spoil == "yield inside with":
            with torch.no_grad():
                yield fvd.Loss("loss", value, role="student")
        yield fvd.Loss("loss", value, role="student", metrics={"level": t.mean(), "constant": 2.0})


@pytest.fixture
def make_trainer():
    def make(spoil: str = "", **training: object) -> Trainer:
        roles = small_roles({"student": True})
        run = small_run(roles, MethodConfig(), training={"learning_rate": 1e-2, "weight_decay": 0, **training})
        adapter = SmallVideoAdapter()
        method = Regress.build(run=run, roles=roles, adapter=adapter)
        method.spoil = spoil
        runtime = SimpleNamespace(
            config=run, roles=roles, adapter=adapter, method=method, device=torch.device("cpu"), start_step=0, resume_from=None
        )
        trainer = Trainer(runtime, TrackerGroup({}), StopSignals())
        trainer.step = 1
        return trainer

    return make


def batches(batch_size: int = 2) -> Iterator[fvd.RawBatch]:
    return (small_raw_batch(batch_size, seed=seed) for seed in itertools.count())


def student_weights(trainer: Trainer) -> torch.Tensor:
    parameters = trainer.runtime.roles["student"].trainable_parameters()
    return torch.cat([parameter.detach().flatten() for parameter in parameters]).clone()


def test_a_step_moves_the_weights_and_reports(make_trainer):
    trainer = make_trainer()
    before = student_weights(trainer)
    metrics = trainer.train_step(batches())
    assert not torch.equal(before, student_weights(trainer))
    assert metrics.keys() == {
        "train/loss",
        "train/level",
        "train/constant",
        "grad_norm/student",
        "lr/student",
        "skipped/student",
        "clipped/student",
        "passes/student_forwards",
        "passes/student_backwards",
        "health/skipped_total_student",
        "health/clipped_share_student",
        "health/unmoved_tensors_student",
    }
    assert metrics["health/unmoved_tensors_student"] == 0
    assert metrics["train/constant"] == 2.0
    assert metrics["lr/student"] == 1e-2
    assert all(parameter.grad is None for parameter in trainer.runtime.roles["student"].trainable_parameters())


def test_the_gradient_norm_is_clipped_and_reported_unclipped(make_trainer, monkeypatch):
    trainer = make_trainer(max_grad_norm=0.01)
    norms = []
    monkeypatch.setattr(
        trainer.runtime.roles["student"],
        "step",
        lambda: norms.append(sum(float(p.grad.square().sum()) for p in grads(trainer)) ** 0.5),
    )
    metrics = trainer.train_step(batches())
    assert metrics["grad_norm/student"] > 0.1
    assert metrics["clipped/student"] == 1
    assert norms[0] == pytest.approx(0.01, rel=1e-3)


def test_the_share_of_clipped_updates_is_that_of_the_last_hundred(make_trainer):
    updates = make_trainer(max_grad_norm=2.0).updates["student"]
    updates.handle.step = lambda: None
    shares = [updates.apply(norm)["health/clipped_share_student"] for norm in [3.0] * 3 + [1.0] * 97 + [2.0] * 2]
    assert shares[0] == 1.0
    assert shares[3] == 0.75
    assert shares[99] == 0.03
    assert shares[101] == 0.01  # a norm equal to the clip is not clipped, and two of the first three have gone
    skipped = updates.apply(math.inf)
    assert skipped.keys() == {"lr/student", "skipped/student", "health/skipped_total_student"}


def test_nothing_is_said_of_clipping_where_there_is_none(make_trainer):
    metrics = make_trainer(max_grad_norm=0).train_step(batches())
    assert not {name for name in metrics if "clipped" in name}


def grads(trainer: Trainer) -> list[torch.nn.Parameter]:
    return [p for p in trainer.runtime.roles["student"].trainable_parameters() if p.grad is not None]


def test_accumulation_equals_one_large_batch(make_trainer):
    """The draws are keyed by position, so two micro-batches of two are the batch of four."""

    def gradient(**training: int) -> torch.Tensor:
        trainer = make_trainer(**training)
        samples = small_raw_batch(4, seed=0)
        size = training["train_batch_size"]
        parts = (
            fvd.RawBatch(
                {name: tensor[start : start + size] for name, tensor in samples.tensors.items()},
                samples.dropped[start : start + size],
                samples.info[start : start + size],
            )
            for start in range(0, 4, size)
        )
        for start, part in zip(range(0, 4, size), parts, strict=True):
            trainer.accumulate(part, start, StepMetrics())
        return torch.cat([p.grad.flatten() for p in grads(trainer)])

    whole = gradient(train_batch_size=4, gradient_accumulation_steps=1)
    parts = gradient(train_batch_size=2, gradient_accumulation_steps=2)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-7)


def test_a_step_that_is_not_finite_is_skipped_and_counted(make_trainer):
    trainer = make_trainer("nan")
    before = student_weights(trainer)
    for step in (1, 2, 3):
        trainer.step = step
        metrics = trainer.train_step(batches())
        assert metrics["skipped/student"] == 1.0
        assert metrics["health/skipped_total_student"] == step
    assert torch.equal(before, student_weights(trainer))
    assert trainer.runtime.roles["student"].lr_schedulers["main"].last_epoch == 0
    assert trainer.runtime.roles["student"].updates == 0
    trainer.runtime.method.spoil = ""
    metrics = trainer.train_step(batches())
    assert (metrics["skipped/student"], metrics["health/skipped_total_student"]) == (0.0, 3.0)
    assert not torch.equal(before, student_weights(trainer))
    assert trainer.runtime.roles["student"].updates == 1


def test_yielding_inside_no_grad_is_refused(make_trainer):
    with pytest.raises(PluginError, match="inside a `with"):
        make_trainer("yield inside with").train_step(batches())


class EveryThird(Regress):
    def roles_to_update(self, iteration):
        return ["student"] if iteration % 3 == 0 else []


def test_a_schedule_counts_the_steps_of_its_role():
    """A role that steps every third time has decayed when the run ends, not after a third of it."""
    roles = small_roles({"student": True})
    training = {"max_train_steps": 30, "learning_rate": 1.0, "lr_scheduler": "linear"}
    run = small_run(roles, MethodConfig(), training=training)
    method = EveryThird.build(run=run, roles=roles, adapter=SmallVideoAdapter())
    assert method.count_role_steps(30) == {"student": 10}
    rates = []
    for iteration in range(1, 31):
        for role in method.roles_to_update(iteration):
            rates.append(roles[role].optimizers["main"].param_groups[0]["lr"])
            roles[role].step()
    assert rates == pytest.approx([1 - step / 10 for step in range(10)])


def test_means_and_sums_over_micro_batches():
    metrics = StepMetrics()
    for value in (1.0, 2.0, 6.0):
        metrics.mean("tensor", torch.tensor(value))
        metrics.mean("number", value)
        metrics.sum("count", torch.tensor(int(value)))
        metrics.sum("plain count", value)
    metrics.mean("sometimes", torch.tensor(5.0))
    assert metrics.to_host() == {"tensor": 3.0, "number": 3.0, "count": 9.0, "plain count": 9.0, "sometimes": 5.0}
    assert StepMetrics().to_host() == {}


def test_a_metric_that_its_method_changes_afterwards_keeps_its_value():
    metrics, running = StepMetrics(), torch.tensor(2.0)
    metrics.mean("running", running)
    running += 5
    metrics.mean("running", running)
    assert metrics.to_host() == {"running": 4.5}


def test_first_signal_asks_second_insists():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert stop.signal_number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


class Idle(Regress):
    """Yields a loss that reaches no parameter of the role that is due."""

    def single_train_step(self, batch, iteration, *, rng):
        yield fvd.Loss("loss", torch.zeros((), requires_grad=True) * 1.0, role="student")


def test_a_role_that_is_due_and_gets_no_gradient_is_refused(make_trainer, monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr(trainer.runtime.method, "single_train_step", Idle.single_train_step.__get__(trainer.runtime.method))
    with pytest.raises(PluginError, match="updates student at step 1, but no loss reached it"):
        trainer.train_step(batches())
