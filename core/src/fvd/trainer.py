"""The trainer: infrastructure only. It sees a method, a loader and a validator; no role's meaning and no model.

on_train_start → resume → loop { accumulate: the step yields losses, backward each → clip → one host sync →
step and schedule the roles due → zero → look at its health → log → end where it failed → save → validate } → finish
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from fvd.accounting import Passes, PassHistory, describe_passes
from fvd.console import progress
from fvd.data.spec import RawBatch
from fvd.errors import PluginError, mistake_in_code
from fvd.events import CheckpointEvent, RunOutcome, StepEvent, ValidationEvent
from fvd.failed_run import FailedRun, set_failed_run_aside
from fvd.health.core_rules import rules_of_loss
from fvd.health.monitor import HealthMonitor
from fvd.health.past import past_steps
from fvd.metrics import StepMetrics
from fvd.pass_counter import PassCounter
from fvd.rng import StepRandom
from fvd.rundir import RunDirectory
from fvd.runtime import Runtime
from fvd.signals import StopSignals
from fvd.step_contract import checked_losses, checked_roles_to_update
from fvd.stopwatch import Stopwatch
from fvd.trackers.base import TrackerGroup
from fvd.updates import RoleUpdates, zero_gradients
from fvd.validation.base import Artifact, ValidationStopped

logger = logging.getLogger(__name__)


class Trainer:
    """Runs one `Runtime` to its end."""

    def __init__(self, runtime: Runtime, trackers: TrackerGroup, stop: StopSignals) -> None:
        self.runtime = runtime
        self.trackers = trackers
        self.stop = stop
        self.step = runtime.start_step
        self.last_checkpoint: Path | None = runtime.resume_from.path if runtime.resume_from else None
        self.failed: FailedRun | None = None
        self.stopwatch = Stopwatch(runtime.device)
        past = past_steps(RunDirectory(runtime.resume_from.run_dir).metrics_file, self.step) if runtime.resume_from else []
        logged = [row.metrics for row in past]
        self.updates = {handle.name: RoleUpdates(handle, logged) for handle in runtime.roles.trainable}
        rules_of_roles = [rule for updates in self.updates.values() for rule in updates.health_rules()]
        self.health = HealthMonitor([*rules_of_roles, *runtime.method.health_rules()], past, start_step=self.step)
        self.passes = PassCounter(runtime.roles)
        self.pass_history = PassHistory()
        self._losses: set[str] = set()

    # --- the run ---
    def fit(self) -> RunOutcome:
        """Train to ``max_train_steps`` or to a stop signal; whatever happens, trackers are closed.

        Raises FvdError where training came to nothing (see `HealthRule.ends_run_after`); what it left is kept as a
        ``failed-…`` folder.
        """
        outcome: RunOutcome | None = None
        try:
            self.prepare()
            self.runtime.plugins.notify("fvd_run_start", run=self.runtime)
            self.loop()
            if self.saved_step != self.step and (self.step > self.runtime.start_step or not self.stop.requested):
                self.save()
            self.compare_passes()
            outcome = RunOutcome("stopped" if self.stop.requested else "finished", self.step, self.stop.signal_number)
        finally:
            ended = outcome or RunOutcome("failed", self.step)
            self.runtime.plugins.notify("fvd_run_end", run=self.runtime, outcome=ended)
            self.trackers.finish()
            self.passes.close()
        return outcome

    def prepare(self) -> None:
        """Everything that happens once: encode what every batch needs, free the encoders, restore, validate step 0."""
        runtime = self.runtime
        runtime.adapter.on_train_start()
        runtime.method.on_train_start()
        request = runtime.method.validation_request(self.step) if runtime.validator else None
        if runtime.validator and request:
            runtime.validator.on_train_start(request)
        runtime.adapter.release()
        runtime.restore()
        self.end_where_it_failed()
        if self.validation_due(self.step):
            self.validate()

    def loop(self) -> None:
        training = self.runtime.config.training
        if expected := self.expected_passes():
            logger.info("passes expected a step, on average: %s", describe_passes(expected))
        with (
            contextlib.closing(iter(self.runtime.loader)) as batches,
            progress("training", training.max_train_steps, initial=self.step) as bar,
        ):
            while self.step < training.max_train_steps and not self.stop.requested:
                self.step += 1
                self.stopwatch.start_step()
                metrics = self.train_step(batches)
                metrics |= self.stopwatch.end_step(training.train_batch_size * training.gradient_accumulation_steps)
                metrics["data/epoch"] = float(self.runtime.loader.epoch)
                metrics |= self.health.observe(self.step, metrics)
                self.report(metrics)
                bar.advance(1, **_shown(metrics))
                self.end_where_it_failed()
                with bar.paused():
                    if self.save_due(self.step) or self.stop.requested:
                        self.save()
                    if self.validation_due(self.step):
                        self.validate()

    # --- one step ---
    def train_step(self, batches: Iterator[RawBatch]) -> dict[str, float]:
        """Backpropagate every loss of every micro-batch, then move the roles that are due."""
        collected = StepMetrics()
        training = self.runtime.config.training
        self.passes.start()
        samples = 0
        for micro_batch in range(training.gradient_accumulation_steps):
            with self.stopwatch.waiting_for_data():
                batch = next(batches)
            samples += batch.batch_size
            self.accumulate(batch, micro_batch * training.train_batch_size, collected)
        due = checked_roles_to_update(self.runtime.method, self.step)
        for role in due:
            collected.mean(f"grad_norm/{role}", self.clip(role))
        metrics = collected.to_host()
        metrics |= self.count_passes(samples)
        metrics |= self.update(due, metrics)
        self.runtime.method.on_step_end(self.step)
        return metrics

    def accumulate(self, batch: RawBatch, first_position: int, metrics: StepMetrics) -> None:
        runtime = self.runtime
        training = runtime.config.training
        rng = StepRandom.for_step(
            seed=training.seed,
            step=self.step,
            first_position=first_position,
            batch_size=batch.batch_size,
            device=runtime.device,
        )
        for loss in checked_losses(runtime.method, batch.to(runtime.device), self.step, rng):
            self._watch_loss(f"train/{loss.name}")
            runtime.adapter.backward(loss.value / training.gradient_accumulation_steps, loss.ctx)
            metrics.mean(f"train/{loss.name}", loss.value)
            for name, value in loss.metrics.items():
                metrics.mean(f"train/{name}", value)
            for name, value in loss.counts.items():
                metrics.sum(f"train/{name}", value)

    def clip(self, role: str) -> Tensor:
        """The gradient norm of a role before clipping; a tensor, no sync."""
        norm = self.updates[role].clip()
        if norm is None:
            raise PluginError(
                f"the method {self.runtime.config.recipe.method} updates {role} at step {self.step}, but no loss reached it",
                cure=mistake_in_code("the method's"),
            )
        return norm

    def update(self, due: Sequence[str], metrics: dict[str, float]) -> dict[str, float]:
        """Move the roles due whose gradients are finite; what became of each."""
        done: dict[str, float] = {}
        for role in due:
            done |= self.updates[role].apply(metrics[f"grad_norm/{role}"])
        zero_gradients(self.runtime.roles.trainable)
        return done

    def count_passes(self, samples: int) -> dict[str, float]:
        """What the networks did in this step, by role, a micro-batch."""
        counted = self.passes.passes(samples)
        self.pass_history.add(counted)
        return {f"passes/{role}_{kind}": count for role, each in counted.items() for kind, count in vars(each).items()}

    def expected_passes(self) -> Mapping[str, Passes] | None:
        return self.runtime.config.method_config.expected_passes(self.runtime.config)

    def compare_passes(self) -> None:
        """Say at the end what the networks did, and warn where the method expects something else."""
        if not self.pass_history.steps:
            return
        logger.info("passes counted a step, on average: %s", describe_passes(self.pass_history.mean()))
        expected = self.expected_passes()
        if expected and (unexpected := self.pass_history.unexpected(expected)):
            logger.warning("by more than chance explains, other than expected: %s", ", ".join(unexpected))

    def _watch_loss(self, name: str) -> None:
        if name not in self._losses:
            self._losses.add(name)
            for rule in rules_of_loss(name):
                self.health.add(rule)

    # --- around it ---
    def report(self, metrics: dict[str, float]) -> None:
        training = self.runtime.config.training
        if self.step % training.log_every_steps == 0 or self.step == training.max_train_steps:
            self.trackers.log(metrics, self.step)
        self.runtime.plugins.notify("fvd_step_end", run=self.runtime, step=StepEvent(self.step, metrics))

    def save_due(self, step: int) -> bool:
        training = self.runtime.config.training
        every = training.training_state_checkpointing_steps
        return step == training.max_train_steps or (every > 0 and step % every == 0)

    def save(self) -> None:
        runtime = self.runtime
        self.last_checkpoint = runtime.checkpoints.save(
            self.step,
            runtime.roles,
            method_state=runtime.method.state_dict(),
            loader_state=runtime.loader.state_dict(),
            lock=runtime.lock,
            doubtful_since=self.health.doubtful_since,
        )
        logger.info("checkpoint %s", self.last_checkpoint)
        runtime.plugins.notify("fvd_checkpoint_saved", run=runtime, event=CheckpointEvent(self.step, self.last_checkpoint))

    def end_where_it_failed(self) -> None:
        """Raise what is wrong where training has come to nothing: before the step is saved as one to go on from."""
        is_last = self.step >= self.runtime.config.training.max_train_steps
        failure = self.health.why_to_end_now(self.step) if self.step > self.runtime.start_step else None
        failure = failure or (self.health.why_it_failed(self.step) if is_last else None)
        if failure:
            self.failed = set_failed_run_aside(self.runtime, self.step, failure)
            raise failure.error

    @property
    def saved_step(self) -> int | None:
        steps = self.runtime.checkpoints.steps()
        return steps[-1] if steps else None

    def validation_due(self, step: int) -> bool:
        """At step 0, every ``validation_steps``, and at the end; not once a stop has been asked for, and not again
        where a resumed run finds it done."""
        runtime = self.runtime
        if (runtime.validator is None and runtime.held_out is None) or self.stop.requested:
            return False
        if step == runtime.start_step and self._is_validated(step):
            return False
        training = self.runtime.config.training
        every = training.validation_steps
        return step == 0 or step == training.max_train_steps or (every > 0 and step % every == 0)

    def _is_validated(self, step: int) -> bool:
        """Whether everything is there that validation makes."""
        validator, held_out = self.runtime.validator, self.runtime.held_out
        has_videos = validator is None or validator.step_dir(step).exists()
        return has_videos and (held_out is None or self.runtime.run_dir.has_logged(step, held_out.metric))

    def validate(self) -> None:
        """The held-out loss, where samples are held out, and videos, where there are prompts and the method wants them."""
        runtime = self.runtime
        artifacts: list[Artifact] = []
        try:
            metrics = runtime.held_out.evaluate(lambda: self.stop.requested) if runtime.held_out else {}
            request = runtime.method.validation_request(self.step) if runtime.validator else None
            if runtime.validator and request:
                artifacts = runtime.validator.log_validation(self.step, request)
        except ValidationStopped:
            logger.info("the validation of step %d is left; a run that continues makes it", self.step)
            return
        # Logged when all of it is done: one that is made again would be logged twice.
        if runtime.held_out:
            self.trackers.log(metrics, self.step)
            logger.info("%s", runtime.held_out.describe(metrics))
        if runtime.validator and request:
            runtime.adapter.release()
            for artifact in artifacts:
                self.trackers.log_video(artifact.name, artifact.path, self.step, artifact.caption)
            logger.info("validation: %d videos in %s", len(artifacts), runtime.validator.step_dir(self.step))
        if metrics or artifacts:
            event = ValidationEvent(self.step, artifacts, metrics)
            runtime.plugins.notify("fvd_validation_end", run=runtime, event=event)

    def where_to_continue(self) -> str:
        """For messages about a run that ended early."""
        if self.failed is not None:
            return self.failed.describe()
        if self.last_checkpoint is None:
            return "There is no checkpoint yet."
        return f"The last checkpoint is {self.last_checkpoint}; the same command continues from it."


def _shown(metrics: dict[str, float]) -> dict[str, str]:
    """What a progress line shows: the losses themselves, not what is logged beside them."""
    losses = {name.removeprefix("train/"): value for name, value in metrics.items() if name.startswith("train/")}
    return {name: f"{value:.4g}" for name, value in losses.items() if name.endswith("loss") and "/" not in name}
