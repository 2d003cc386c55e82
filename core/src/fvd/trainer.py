"""The trainer: infrastructure only. It sees a method, a loader and a validator; no role's meaning and no model.

on_train_start → resume → loop { accumulate: the step yields losses, backward each → clip → one host sync →
step and schedule the roles due → zero → log → save → validate } → final save → finish
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from fvd.console import progress
from fvd.data.spec import RawBatch
from fvd.errors import FvdError, PluginError, mistake_in_code
from fvd.events import CheckpointEvent, RunOutcome, StepEvent, ValidationEvent
from fvd.metrics import StepMetrics
from fvd.rng import StepRandom
from fvd.runtime import Runtime
from fvd.signals import StopSignals
from fvd.step_contract import checked_losses, checked_roles_to_update
from fvd.stopwatch import Stopwatch
from fvd.trackers.base import TrackerGroup

logger = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 10
"""So many non-finite steps of one role in a row end the run: it does not recover by itself."""


class Trainer:
    """Runs one `Runtime` to its end."""

    def __init__(self, runtime: Runtime, trackers: TrackerGroup, stop: StopSignals) -> None:
        self.runtime = runtime
        self.trackers = trackers
        self.stop = stop
        self.step = runtime.start_step
        self.last_checkpoint: Path | None = runtime.resume_from.path if runtime.resume_from else None
        self.stopwatch = Stopwatch(runtime.device)
        self._skipped_in_a_row: dict[str, int] = {}

    # --- the run ---
    def fit(self) -> RunOutcome:
        """Train to ``max_train_steps`` or to a stop signal; whatever happens, trackers are closed."""
        outcome: RunOutcome | None = None
        try:
            self.prepare()
            self.runtime.plugins.notify("fvd_run_start", run=self.runtime)
            self.loop()
            if self.saved_step != self.step and (self.step > self.runtime.start_step or not self.stop.requested):
                self.save()
            outcome = RunOutcome("stopped" if self.stop.requested else "finished", self.step, self.stop.signal_number)
        finally:
            ended = outcome or RunOutcome("failed", self.step)
            self.runtime.plugins.notify("fvd_run_end", run=self.runtime, outcome=ended)
            self.trackers.finish()
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
        if runtime.resume_from:
            runtime.checkpoints.load(runtime.resume_from, runtime.roles, runtime.method)
            runtime.loader.load_state_dict(runtime.resume_from.loader_state)
        if self.validation_due(self.step):
            self.validate()

    def loop(self) -> None:
        training = self.runtime.config.training
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
                self.report(metrics)
                bar.advance(1, **_shown(metrics))
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
        for micro_batch in range(training.gradient_accumulation_steps):
            with self.stopwatch.waiting_for_data():
                batch = next(batches)
            self.accumulate(batch, micro_batch * training.train_batch_size, collected)
        due = checked_roles_to_update(self.runtime.method, self.step)
        for role in due:
            collected.mean(f"grad_norm/{role}", self.clip(role))
        metrics = collected.to_host()
        self.update(due, metrics)
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
            runtime.adapter.backward(loss.value / training.gradient_accumulation_steps, loss.ctx)
            metrics.mean(f"train/{loss.name}", loss.value)
            for name, value in loss.metrics.items():
                metrics.mean(f"train/{name}", value)
            for name, value in loss.counts.items():
                metrics.sum(f"train/{name}", value)

    def clip(self, role: str) -> Tensor:
        """The gradient norm of a role before clipping; a tensor, no sync."""
        parameters = [p for p in self.runtime.roles[role].trainable_parameters() if p.grad is not None]
        if not parameters:
            raise PluginError(
                f"the method {self.runtime.config.recipe.method} updates {role} at step {self.step}, but no loss reached it",
                cure=mistake_in_code("the method's"),
            )
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        max_norm = self.runtime.config.training.max_grad_norm
        if max_norm > 0:
            clip_grads_with_norm_(parameters, max_norm, norm)
        return norm

    def update(self, due: Sequence[str], metrics: dict[str, float]) -> None:
        """Step and schedule the roles due whose gradients are finite; a role with NaN or Inf keeps its weights."""
        for role in due:
            handle = self.runtime.roles[role]
            metrics[f"lr/{role}"] = next(iter(handle.optimizers.values())).param_groups[0]["lr"]
            finite = math.isfinite(metrics[f"grad_norm/{role}"])
            metrics[f"skipped/{role}"] = float(not finite)
            if finite:
                for optimizer in handle.optimizers.values():
                    optimizer.step()
                for scheduler in handle.lr_schedulers.values():
                    scheduler.step()
            self._count_skips(role, finite)
        for handle in self.runtime.roles.trainable:
            for optimizer in handle.optimizers.values():
                optimizer.zero_grad(set_to_none=True)

    def _count_skips(self, role: str, finite: bool) -> None:
        if finite:
            self._skipped_in_a_row[role] = 0
            return
        count = self._skipped_in_a_row[role] = self._skipped_in_a_row.get(role, 0) + 1
        logger.warning("step %d: the gradient of %s is not finite; its weights keep their values", self.step, role)
        if count >= MAX_SKIPPED_IN_A_ROW:
            raise FvdError(
                f"the gradient of {role} was not finite for {count} steps in a row (until step {self.step})",
                cure=f"Lower its learning rate, or look at the metrics before that. {self.where_to_continue()}",
            )

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
        )
        logger.info("checkpoint %s", self.last_checkpoint)
        runtime.plugins.notify("fvd_checkpoint_saved", run=runtime, event=CheckpointEvent(self.step, self.last_checkpoint))

    @property
    def saved_step(self) -> int | None:
        steps = self.runtime.checkpoints.steps()
        return steps[-1] if steps else None

    def validation_due(self, step: int) -> bool:
        """At step 0, every ``validation_steps``, and at the end; not once a stop has been asked for, and not again
        where a resumed run finds it done."""
        validator = self.runtime.validator
        if validator is None or self.stop.requested:
            return False
        if step == self.runtime.start_step and validator.step_dir(step).exists():
            return False
        training = self.runtime.config.training
        every = training.validation_steps
        return step == 0 or step == training.max_train_steps or (every > 0 and step % every == 0)

    def validate(self) -> None:
        runtime = self.runtime
        request = runtime.method.validation_request(self.step)
        if runtime.validator is None or request is None:
            return
        artifacts = runtime.validator.log_validation(self.step, request)
        runtime.adapter.release()
        for artifact in artifacts:
            self.trackers.log_video(artifact.name, artifact.path, self.step, artifact.caption)
        logger.info("validation: %d videos in %s", len(artifacts), runtime.validator.step_dir(self.step))
        runtime.plugins.notify("fvd_validation_end", run=runtime, event=ValidationEvent(self.step, artifacts))

    def where_to_continue(self) -> str:
        """For messages about a run that ended early."""
        if self.last_checkpoint is None:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is {self.last_checkpoint}; the same command continues from it."


def _shown(metrics: dict[str, float]) -> dict[str, str]:
    """What a progress line shows: the losses."""
    return {name.removeprefix("train/"): f"{value:.4g}" for name, value in metrics.items() if name.endswith("loss")}
