"""The trainer's loop on small videos: figures, saves, validations, stop signals, and what a resumed run continues."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_video import LATENT_SHAPE, SmallVideoAdapter, small_lock, small_raw_batch, small_roles, small_run

import fvd
from fvd.checkpoint.manager import CheckpointManager
from fvd.config.models import MethodConfig
from fvd.errors import FvdError, PluginError
from fvd.health import HealthRule
from fvd.health.core_rules import MAX_SKIPPED_IN_A_ROW
from fvd.rundir import RunDirectory
from fvd.runtime import Runtime
from fvd.signals import StopSignals
from fvd.trackers.base import Tracker, TrackerGroup
from fvd.trainer import Trainer
from fvd.validation.base import Artifact, Validator, ValidatorContext


class Balanced(fvd.Method):
    """Divides its loss by a running average of it: what it has seen before changes what it does next."""

    role_names = ("student",)

    def __init__(self, **parts: object) -> None:
        super().__init__(**parts)
        self.register_buffer("average", torch.tensor(1.0))
        self.register_buffer("seen", torch.tensor(0))

    def optimizer_specs(self):
        return {"student": fvd.OptimizerSpec(learning_rate=1e-2)}

    def single_train_step(self, batch, iteration, *, rng) -> Iterator[fvd.Loss]:
        prepared = self.adapter.prepare_batch(batch, latents_source="data")
        t = 1000 * rng.rand()
        noise = rng.randn_like(prepared.latents)
        x_t = self.adapter.add_noise(prepared.latents, noise, t)
        prediction = self.adapter.bind(self.roles["student"]).predict(x_t, t, prepared.cond)
        value = (prediction - self.adapter.training_target(prepared.latents, noise, t)).square().mean()
        self.average.lerp_(value.detach(), 0.3)
        self.seen += 1
        counts = {"samples": float(batch.batch_size)}
        yield fvd.Loss("loss", value / self.average, role="student", metrics={"average": self.average}, counts=counts)


class SmallLoader:
    """An endless stream, resumable; sample batches are a function of the position."""

    samples_per_epoch = 1000

    def __init__(self, batch_size: int, before_each: Callable[[int], None]) -> None:
        self.position = 0
        self.batch_size = batch_size
        self.before_each = before_each

    def __iter__(self):
        while True:
            self.before_each(self.position)
            self.position += 1
            yield small_raw_batch(self.batch_size, seed=self.position)

    @property
    def epoch(self):
        return self.position // self.samples_per_epoch

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Listing(Validator):
    """Writes a text file for a video, and remembers when."""

    def __init__(self, folder: Path) -> None:
        adapter, shape = SmallVideoAdapter(), LATENT_SHAPE
        context = ValidatorContext(
            adapter=adapter, load_sampler=lambda kind: None, prompts=[], latent_shape=shape, output_dir=folder, fps=16
        )
        super().__init__(context)
        self.steps: list[int] = []

    def on_train_start(self, request):
        assert request.sample_handle.name == "student"

    def log_validation(self, step, request):
        self.steps.append(step)
        self.step_dir(step).mkdir(parents=True)
        (self.step_dir(step) / "0.txt").write_text("video")
        return [Artifact("validation/0", self.step_dir(step) / "0.txt", "a square")]


class Recording(Tracker):
    def __init__(self) -> None:
        self.metrics: dict[int, dict[str, float]] = {}
        self.videos: list[tuple[str, str, int, str]] = []
        self.finished = 0

    def log(self, metrics, step):
        self.metrics[step] = dict(metrics)

    def log_video(self, name, path, step, caption):
        self.videos.append((name, path.name, step, caption))

    def finish(self):
        self.finished += 1


class Hooks:
    """In the place of `Plugins`: what it was told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def notify(self, name: str, *, run: object, **event: SimpleNamespace) -> None:
        (about,) = event.values() or [SimpleNamespace(step=-1)]
        self.told.append((name.removeprefix("fvd_"), about.step))


@pytest.fixture
def make(tmp_path):
    """``make("out", max_train_steps=…)`` -> a trainer, resumed where the folder has a checkpoint."""

    def build(
        name: str = "out",
        *,
        method: type[fvd.Method] = Balanced,
        validates: bool = False,
        before_each_batch: Callable[[int], None] = lambda position: None,
        **training: object,
    ) -> SimpleNamespace:
        roles = small_roles({"student": True})
        run = small_run(roles, MethodConfig(), training={"output_dir": str(tmp_path / name), **training})
        adapter = SmallVideoAdapter()
        run_dir = RunDirectory(tmp_path / name)
        checkpoints = CheckpointManager(run_dir.checkpoints)
        made = SimpleNamespace(hooks=Hooks(), tracker=Recording(), stop=StopSignals(), roles=roles)
        made.validator = Listing(run_dir.validation) if validates else None
        made.method = method.build(run=run, roles=roles, adapter=adapter)
        made.runtime = Runtime(
            config=run,
            plugins=made.hooks,
            device=torch.device("cpu"),
            run_dir=run_dir,
            checkpoints=checkpoints,
            resume_from=checkpoints.latest(),
            family=None,
            roles=roles,
            adapter=adapter,
            method=made.method,
            loader=SmallLoader(run.training.train_batch_size, before_each_batch),
            validator=made.validator,
            held_out=None,
            latent_shape=LATENT_SHAPE,
            lock=small_lock(run),
        )
        made.trainer = Trainer(made.runtime, TrackerGroup({"recording": made.tracker}), made.stop)
        return made

    return build


def fit(made: SimpleNamespace):
    with made.stop:
        return made.trainer.fit()


def weights(made: SimpleNamespace) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in made.roles["student"].trainable_parameters()])


# --- resuming --------------------------------------------------------------------------------------------------------
def test_what_a_method_keeps_for_itself_is_continued(make):
    """5 + 7 = 12, with an average that changes every later step."""
    straight, first, then = (make(name, max_train_steps=steps) for name, steps in (("a", 12), ("b", 5), ("b", 12)))
    fit(straight)
    fit(first)
    then = make("b", max_train_steps=12)
    assert then.trainer.step == 5
    assert then.method.seen == 0
    fit(then)
    assert then.method.seen == straight.method.seen == 12
    assert torch.equal(then.method.average, straight.method.average)
    assert torch.equal(weights(then), weights(straight))
    together = {**first.tracker.metrics, **then.tracker.metrics}
    assert together.keys() == straight.tracker.metrics.keys() == set(range(1, 13))
    for step, row in straight.tracker.metrics.items():
        for name in ("train/loss", "train/average", "grad_norm/student", "lr/student"):
            assert together[step][name] == row[name], (step, name)


def test_metrics_are_means_and_counts_are_sums_over_micro_batches(make):
    made = make(max_train_steps=2, train_batch_size=2, gradient_accumulation_steps=3)
    fit(made)
    assert made.tracker.metrics[2]["train/samples"] == 6
    assert made.method.seen == 6


# --- figures ---------------------------------------------------------------------------------------------------------
class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("fvd.stopwatch.time", made)
    return made


def test_time_is_split_into_waiting_for_data_and_the_rest(make, clock):
    """Every batch takes 3 s to come, and 1 s to train on; saving and validating count for no step."""

    class Slow(Balanced):
        def single_train_step(self, batch, iteration, *, rng):
            clock.now += 1.0
            yield from super().single_train_step(batch, iteration, rng=rng)

        def state_dict(self, *args, **kwargs):
            clock.now += 1000.0
            return super().state_dict(*args, **kwargs)

    def wait(position: int) -> None:
        clock.now += 3.0

    made = make(
        method=Slow,
        before_each_batch=wait,
        max_train_steps=3,
        train_batch_size=2,
        gradient_accumulation_steps=2,
        training_state_checkpointing_steps=1,
    )
    fit(made)
    for step in (1, 2, 3):
        row = made.tracker.metrics[step]
        assert row["perf/step_seconds"] == pytest.approx(8.0)
        assert row["perf/samples_per_second"] == pytest.approx(4 / 8)
        assert row["perf/data_wait_share"] == pytest.approx(6 / 8)
        assert row["perf/peak_memory_mib"] > 50


def test_data_that_are_there_are_not_waited_for(make, clock):
    class Slow(Balanced):
        def single_train_step(self, batch, iteration, *, rng):
            clock.now += 0.5
            yield from super().single_train_step(batch, iteration, rng=rng)

    made = make(method=Slow, max_train_steps=1)
    fit(made)
    assert made.tracker.metrics[1]["perf/data_wait_share"] == 0
    assert made.tracker.metrics[1]["perf/samples_per_second"] == pytest.approx(2.0)


# --- order -----------------------------------------------------------------------------------------------------------
def test_the_order_of_a_run(make):
    made = make(validates=True, max_train_steps=3, validation_steps=2, training_state_checkpointing_steps=2)
    outcome = fit(made)
    assert (outcome.status, outcome.step, outcome.signal_number) == ("finished", 3, None)
    assert made.hooks.told == [
        ("validation_end", 0),
        ("run_start", -1),
        ("step_end", 1),
        ("step_end", 2),
        ("checkpoint_saved", 2),
        ("validation_end", 2),
        ("step_end", 3),
        ("checkpoint_saved", 3),
        ("validation_end", 3),
        ("run_end", 3),
    ]
    assert made.tracker.videos == [("validation/0", "0.txt", step, "a square") for step in (0, 2, 3)]
    assert made.tracker.finished == 1


def test_a_method_hears_of_each_step_once_between_the_optimizers_and_the_save(make):
    """Where a method keeps averages of weights: they must be in the checkpoint of their own step."""

    class Averaging(Balanced):
        def on_step_end(self, iteration):
            made.hooks.told.append(("method", iteration))
            made.seen_weights.append(weights(made).clone())

    training = {"gradient_accumulation_steps": 2, "training_state_checkpointing_steps": 1}
    made = make(method=Averaging, max_train_steps=2, **training)
    made.seen_weights = [weights(made).clone()]
    fit(made)
    steps = [(event, step) for step in (1, 2) for event in ("method", "step_end", "checkpoint_saved")]
    assert made.hooks.told == [("run_start", -1), *steps, ("run_end", 2)]
    before, first, second = made.seen_weights
    assert not torch.equal(before, first)
    assert torch.equal(second, weights(made))


def test_what_a_validation_loaded_is_released(make):
    """By the trainer, whoever wrote the validator: VAE and text encoder do not stay beside training."""
    made = make(validates=True, max_train_steps=2, validation_steps=2)
    released = []
    made.runtime.adapter.release = lambda: released.append(list(made.validator.steps))
    fit(made)
    assert released == [[], [0], [0, 2]]


def stop_before_batch(position: int, number: int = signal.SIGTERM) -> Callable[[int], None]:
    return lambda at: os.kill(os.getpid(), number) if at == position else None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_on_a_validation_step_saves_and_does_not_validate(make, number):
    """Who sends it (a scheduler) gives seconds; validating takes minutes."""
    stop = stop_before_batch(3, number)  # in step 4, which is a validation step
    made = make(validates=True, before_each_batch=stop, max_train_steps=8, validation_steps=2)
    outcome = fit(made)
    assert (outcome.status, outcome.step, outcome.signal_number) == ("stopped", 4, number)
    assert made.runtime.checkpoints.steps() == [4]
    assert [event for event in made.hooks.told if event[1] == 4] == [("step_end", 4), ("checkpoint_saved", 4), ("run_end", 4)]
    assert made.validator.steps == [0, 2]
    assert not made.validator.step_dir(4).exists()
    assert made.tracker.metrics.keys() == {1, 2, 3, 4}
    assert made.tracker.finished == 1


def test_the_validation_that_a_stop_left_out_is_made_when_the_run_goes_on(make):
    first = make(validates=True, before_each_batch=stop_before_batch(3), max_train_steps=6, validation_steps=2)
    fit(first)
    then = make(validates=True, max_train_steps=6, validation_steps=2)
    assert fit(then).status == "finished"
    assert then.validator.steps == [4, 6]
    assert [video[2] for video in then.tracker.videos] == [4, 6]
    again = make(validates=True, max_train_steps=6, validation_steps=2)
    fit(again)
    assert again.validator.steps == []  # and what is done is not done again


def test_a_stop_on_a_step_that_saves_anyway_saves_once(make):
    made = make(before_each_batch=stop_before_batch(1), max_train_steps=6, training_state_checkpointing_steps=2)
    fit(made)
    assert made.hooks.told.count(("checkpoint_saved", 2)) == 1


# --- failures --------------------------------------------------------------------------------------------------------
class YieldsInsideAutocast(Balanced):
    def single_train_step(self, batch, iteration, *, rng):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for loss in super().single_train_step(batch, iteration, rng=rng):
                yield fvd.Loss(loss.name, loss.value.float(), role=loss.role)


class MovesTheWrongRole(Balanced):
    def roles_to_update(self, iteration):
        return ["studnet"] if iteration == 2 else ["student"]


def test_yielding_under_autocast_is_refused(make, monkeypatch):
    """The backward pass would run in another precision than it does without the block."""
    monkeypatch.setattr(SmallVideoAdapter, "predict", lambda self, handle, *args, **kwargs: _in_float32(self, handle, *args))
    made = make(method=YieldsInsideAutocast, max_train_steps=2)
    with pytest.raises(PluginError, match=r"YieldsInsideAutocast\) yielded its loss 'loss' inside a `with"):
        fit(made)
    assert made.tracker.finished == 1
    assert made.hooks.told == [("run_start", -1), ("run_end", 1)]
    assert made.runtime.checkpoints.steps() == []


def _in_float32(adapter, handle, x_t, t, cond):
    with torch.autocast("cpu", enabled=False):
        return handle.modules["transformer"](x_t.float(), adapter.sigma(t), cond.embeddings, cond.mask)


def test_moving_a_role_that_is_not_trained_is_refused(make):
    made = make(method=MovesTheWrongRole, max_train_steps=3)
    with pytest.raises(PluginError, match=r"MovesTheWrongRole\) breaks its contract: roles_to_update\(2\).*got \['studnet'\]"):
        fit(made)
    assert made.tracker.metrics.keys() == {1}


def test_a_checkpoint_describes_its_run(make):
    made = make(max_train_steps=1)
    fit(made)
    (path,) = made.runtime.run_dir.checkpoints.iterdir()
    description = json.loads((path / "checkpoint.json").read_text())
    assert (description["step"], description["loader"]) == (1, {"position": 1})
    assert description["config"]["training"]["output_dir"] == str(made.runtime.run_dir.path)


# --- non-finite gradients --------------------------------------------------------------------------------------------
def breaking_at(steps: range) -> type[fvd.Method]:
    class Breaks(Balanced):
        def single_train_step(self, batch, iteration, *, rng):
            for loss in super().single_train_step(batch, iteration, rng=rng):
                value = loss.value * float("nan") if iteration in steps else loss.value
                yield fvd.Loss("loss", value, role="student")

    return Breaks


def test_a_run_that_does_not_recover_ends_and_keeps_the_last_finite_state_aside(make, caplog):
    good = make("good", max_train_steps=3)
    fit(good)
    made = make("bad", method=breaking_at(range(4, 100)), max_train_steps=50)
    with pytest.raises(FvdError, match=r"\[non_finite\] step 13: the gradient of student is not finite") as raised:
        fit(made)
    assert "Lower the role's learning rate" in raised.value.cure
    assert made.runtime.checkpoints.steps() == []
    assert [path.name for path in made.runtime.checkpoints.folder.iterdir()] == [f"failed-{3 + MAX_SKIPPED_IN_A_ROW:08d}"]
    assert torch.equal(weights(made), weights(good))
    assert made.tracker.metrics[13]["health/skipped_total_student"] == 10
    assert made.tracker.metrics[13]["health/non_finite"] == 1
    assert made.tracker.metrics[3]["health/non_finite"] == 0
    assert made.hooks.told[-1] == ("run_end", 13)
    warnings = [record.getMessage() for record in caplog.records if "[non_finite]" in record.getMessage()]
    assert len(warnings) == 1
    assert "step 4:" in warnings[0]


def test_a_step_that_saves_and_ends_the_run_is_no_checkpoint(make):
    made = make(method=breaking_at(range(1, 100)), max_train_steps=50, training_state_checkpointing_steps=10)
    with pytest.raises(FvdError, match="10 times in a row"):
        fit(made)
    assert ("checkpoint_saved", 10) not in made.hooks.told
    assert made.runtime.checkpoints.steps() == []


def test_a_short_run_in_which_a_role_never_moved_is_no_success(make):
    made = make(method=breaking_at(range(1, 100)), max_train_steps=4)
    with pytest.raises(
        FvdError, match=r"\[non_finite\] until step 4: .* 4 of the last 4 times that it could have been otherwise"
    ):
        fit(made)
    assert [path.name for path in made.runtime.checkpoints.folder.iterdir()] == ["failed-00000004"]
    assert made.tracker.finished == 1


def test_a_run_that_recovers_is_a_success(make):
    made = make(method=breaking_at(range(1, 10)), max_train_steps=10)
    assert fit(made).status == "finished"
    assert made.tracker.metrics[10]["health/skipped_total_student"] == 9


def test_the_rules_of_a_method_are_asked_at_each_step_and_logged(make, caplog):
    class AboveThree(HealthRule):
        name, watches, fires_when, remedy = "too_much", ("train/samples",), "samples above 3", "Take less."

        def observe(self, metrics):
            return f"{metrics['train/samples']:g} samples" if metrics["train/samples"] > 3 else None

    class Watched(Balanced):
        def health_rules(self):
            return [AboveThree()]

    made = make("more", method=Watched, max_train_steps=2, train_batch_size=4)
    fit(made)
    assert [made.tracker.metrics[step]["health/too_much"] for step in (1, 2)] == [1, 1]
    assert [record.getMessage() for record in caplog.records if "[too_much]" in record.getMessage()] == [
        "[too_much] step 1: 4 samples. Remedy: Take less."
    ]
    made = make("less", method=Watched, max_train_steps=1, train_batch_size=3)
    fit(made)
    assert made.tracker.metrics[1]["health/too_much"] == 0
