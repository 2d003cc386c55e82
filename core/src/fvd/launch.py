"""`fvd run`: build the runtime, open trackers, train, and say what is where."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import torch

from fvd.checkpoint.manager import Checkpoint
from fvd.config.load import LoadedRun
from fvd.errors import CheckpointError, FvdError, PluginError
from fvd.events import RunOutcome
from fvd.plugins.drift import changed_environment, table
from fvd.plugins.lock import lock_again
from fvd.runtime import Runtime, build_runtime, describe_run, plan_run
from fvd.signals import StopSignals
from fvd.trackers.base import Tracker, TrackerContext, TrackerGroup
from fvd.trackers.jsonl import JsonlTracker
from fvd.trainer import Trainer

logger = logging.getLogger("fvd")


class _CurrentStderr(logging.Handler):
    """Writes to whatever ``sys.stderr`` is at the moment: a progress bar replaces it so that lines go above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


def log_to_console() -> None:
    """Messages of fvd and its plugins, plain, on stderr."""
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(_CurrentStderr())


def log_to_file(path: Path) -> logging.Handler:
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    return handler


def launch(loaded: LoadedRun, *, resume: str) -> RunOutcome:
    """Run ``loaded`` to its end. Raises FvdError, with the checkpoint to continue from in it where there is one."""
    log_to_console()
    started = time.monotonic()
    with StopSignals() as stop:
        plan = plan_run(loaded, resume=resume)
        if plan.nothing_to_do:
            logger.info(
                "%s is at step %d already, and training.max_train_steps is %d: nothing to do",
                plan.run_dir.path,
                plan.start_step,
                plan.config.training.max_train_steps,
            )
            return RunOutcome("finished", plan.start_step)
        steps_seen = plan.checkpoints.steps()
        runtime = build_runtime(plan, stop_requested=lambda: stop.requested)
        with runtime.run_dir.locked():
            if plan.checkpoints.steps() != steps_seen:  # loading takes minutes; another process may have come and gone
                raise CheckpointError(
                    f"another process has written checkpoints to {plan.run_dir.path} meanwhile", cure="Run the command again."
                )
            trainer, outcome = _train(runtime, loaded, stop)
    _farewell(runtime, trainer, outcome, time.monotonic() - started)
    return outcome


def _train(runtime: Runtime, loaded: LoadedRun, stop: StopSignals) -> tuple[Trainer, RunOutcome]:
    runtime.checkpoints.remove_leftovers()
    runtime.run_dir.forget_after(runtime.start_step)
    given = describe_run(runtime, loaded)
    file_handler = log_to_file(runtime.run_dir.logs / "fvd.log")
    try:
        _announce(runtime)
        trackers = build_trackers(runtime)
        trackers.log_file(given)
        trainer = Trainer(runtime, trackers, stop)
        return trainer, _fit(trainer)
    finally:
        logger.removeHandler(file_handler)
        file_handler.close()


def build_trackers(runtime: Runtime) -> TrackerGroup:
    """``metrics.jsonl``, and the trackers that the run file names. One that cannot start is reported and left out."""
    trackers: dict[str, Tracker] = {"jsonl": JsonlTracker(runtime.run_dir.metrics_file, start_step=runtime.start_step)}
    for name in runtime.config.training.trackers:
        log_dir = runtime.run_dir.logs / name
        log_dir.mkdir(parents=True, exist_ok=True)
        context = TrackerContext(
            run=runtime.config, run_dir=runtime.run_dir.path, log_dir=log_dir, start_step=runtime.start_step
        )
        build = runtime.plugins.load("tracker", name)
        try:
            trackers[name] = build(context)
        except Exception:
            logger.warning("tracker %s could not be started and is left out; the run continues", name, exc_info=True)
    return TrackerGroup(trackers)


def _fit(trainer: Trainer) -> RunOutcome:
    try:
        return trainer.fit()
    except CheckpointError:
        raise  # says itself what is left
    except FvdError as error:
        raise FvdError(error.message, cure=f"{error.cure}\n{trainer.where_to_continue()}".strip()) from error
    except torch.cuda.OutOfMemoryError as error:
        raise FvdError(
            f"the GPU ran out of memory at step {trainer.step}: {str(error).splitlines()[0]}",
            cure="Lower training.train_batch_size, the video size or the number of frames, or set "
            f"training.enable_gradient_checkpointing_type: full. {trainer.where_to_continue()}",
        ) from error
    except Exception:
        logger.error("the run failed at step %d. %s", trainer.step, trainer.where_to_continue())
        raise


def _announce(runtime: Runtime) -> None:
    training = runtime.config.training
    samples = training.train_batch_size * training.gradient_accumulation_steps
    logger.info(
        "%s on %s: steps %d to %d, %d samples a step, %d samples in the data, on %s",
        runtime.config.recipe.method,
        runtime.config.recipe.family,
        runtime.start_step,
        training.max_train_steps,
        samples,
        runtime.loader.samples_per_epoch,
        _device_name(runtime),
    )
    _warn_of_another_sampler(runtime)
    if runtime.resume_from:
        logger.info("continuing from %s", runtime.resume_from.path)
        if runtime.branch:
            logger.info("%s", runtime.branch.describe())
        _warn_of_drift(runtime.resume_from, runtime)


def _warn_of_another_sampler(runtime: Runtime) -> None:
    """A method may sample with a sampler of its own, whatever the run file says."""
    said, used = runtime.config.pipeline_config.sampler_kind, runtime.method.sampling_plan(runtime.config).sampler_kind
    if said is not None and runtime.plugins.spec("sampler", said) is not runtime.plugins.spec("sampler", used):
        method = runtime.config.recipe.method
        logger.warning("pipeline_config.sampler_kind: %s has no effect: the method %s samples with %s", said, method, used)


def _warn_of_drift(checkpoint: Checkpoint, runtime: Runtime) -> None:
    try:
        locked = checkpoint.lock
    except PluginError as error:
        logger.warning("%s", error.message)
        return
    now = lock_again(locked, runtime.plugins, runtime.lock.run_file) if locked else None
    changes = changed_environment(locked, now) if locked and now else []
    rows = [(one.what, one.was, "->", one.now) for one in changes]
    if rows:
        logger.warning(
            "this is not the environment that the checkpoint was made in, so it may not continue exactly as it would have:\n%s",
            table(rows),
        )


def _device_name(runtime: Runtime) -> str:
    dtype = runtime.family.context.autocast_dtype
    return f"{runtime.device} in {'float32' if dtype is None else str(dtype).removeprefix('torch.')}"


def _farewell(runtime: Runtime, trainer: Trainer, outcome: RunOutcome, seconds: float) -> None:
    word = "stopped" if outcome.status == "stopped" else "finished"
    logger.info("%s at step %d after %.0f s", word, outcome.step, seconds)
    if alarms := trainer.health.describe_alarms():
        logger.warning("alarms      %s", alarms)
    if trainer.last_checkpoint:
        logger.info("checkpoint  %s", trainer.last_checkpoint)
    if runtime.validator:
        logger.info("videos      %s", runtime.run_dir.validation)
    logger.info("metrics     %s", runtime.run_dir.metrics_file)
    if outcome.status == "stopped":
        logger.info("the same command continues it")
