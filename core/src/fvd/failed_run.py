"""What becomes of a run in which training has come to nothing: what it leaves, and where it may go on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from fvd.errors import CheckpointError
from fvd.health.monitor import Failure
from fvd.runtime import Runtime

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FailedRun:
    """began: the first step of the failure. kept: the state at its last one; None where that could not be written, or was
    loaded and not changed. newest_before: the newest checkpoint from before it began."""

    began: int
    kept: Path | None
    newest_before: Path | None

    def describe(self) -> str:
        kept = f"What it left is kept in {self.kept}; only `--resume` with that path continues from it. " if self.kept else ""
        if self.newest_before is None:
            return f"{kept}There is no checkpoint from before step {self.began}, where this began."
        return (
            f"{kept}The newest checkpoint from before step {self.began}, where this began, is {self.newest_before}; "
            "the same command continues from it."
        )


def set_failed_run_aside(runtime: Runtime, step: int, failure: Failure) -> FailedRun:
    """Keep the state of now, and the checkpoints since training began to fail, under names that no run continues from by
    itself. Where the disk refuses that is logged: what is wrong with the run counts for more."""
    kept: Path | None = None
    try:
        runtime.checkpoints.set_aside(failure.began)
        if step > runtime.start_step:
            kept = runtime.checkpoints.save_failed(
                step,
                runtime.roles,
                method_state=runtime.method.state_dict(),
                loader_state=runtime.loader.state_dict(),
                lock=runtime.lock,
            )
    except (CheckpointError, OSError) as error:
        logger.error("%s", error)
    return FailedRun(failure.began, kept, _newest_before(runtime, failure.began))


def _newest_before(runtime: Runtime, began: int) -> Path | None:
    """Of this run, or else that of another run from which it branched off."""
    steps = [step for step in runtime.checkpoints.steps() if step < began]
    if steps:
        return runtime.checkpoints.path(steps[-1])
    resumed = runtime.resume_from
    return resumed.path if resumed and resumed.step < began and not resumed.is_of_failure else None
