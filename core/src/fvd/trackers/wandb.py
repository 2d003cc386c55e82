"""Weights & Biases. Without a key it records offline; it never prompts, and a failure never ends a run."""

from __future__ import annotations

import logging
import netrc
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import wandb

from fvd.trackers.base import Tracker, TrackerContext

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run as WandbRun

logger = logging.getLogger(__name__)

Mode = Literal["online", "offline"] | None


def build_wandb(context: TrackerContext) -> Tracker:
    return WandbTracker(_start(context))


def _start(context: TrackerContext) -> WandbRun:
    mode = _mode()
    try:
        return _init(context, mode)
    except (wandb.errors.Error, OSError) as error:
        if mode == "offline":
            raise
        logger.warning("wandb cannot be reached (%s); recording offline, `wandb sync` uploads later", error)
        return _init(context, "offline")


def _init(context: TrackerContext, mode: Mode) -> WandbRun:
    training = context.run.training
    return wandb.init(
        project=training.tracker_project_name,
        name=training.wandb_run_name,
        id=_run_id(context),
        resume="allow",
        mode=mode,
        dir=str(context.log_dir.parent),  # wandb makes its own folder `wandb` in there
        config=context.run.as_document(),
        settings=wandb.Settings(silent=True, console="off", init_timeout=60),
    )


def _run_id(context: TrackerContext) -> str:
    """One id a run, so that a resumed run continues its own curves; a run that starts anew gets a new one."""
    path = context.log_dir / "run-id"
    if context.start_step == 0 or not path.exists():
        path.write_text(wandb.sdk.lib.runid.generate_id(), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _mode() -> Mode:
    """``WANDB_MODE`` where set; else online if there is a key, else offline: wandb would ask on the terminal."""
    if os.environ.get("WANDB_MODE"):
        return None  # wandb reads it itself
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_has_key() else "offline"


def _netrc_has_key() -> bool:
    host = urlsplit(wandb.Settings().base_url).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None if host else False
    except (OSError, netrc.NetrcParseError):
        return False


class WandbTracker(Tracker):
    def __init__(self, run: WandbRun) -> None:
        self._run = run

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def log_video(self, name: str, path: Path, step: int, caption: str) -> None:
        self._run.log({name: wandb.Video(str(path), caption=caption, format="mp4")}, step=step)

    def log_file(self, path: Path) -> None:
        shutil.copy(path, self._run.dir)  # what lies there is uploaded with the run

    def finish(self) -> None:
        self._run.finish()
