"""Where the scores are compared, and the teacher's side of the comparison."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

import fvd
from fvd.adapters import Conditioning
from fvd.guidance import guided
from fvd.timesteps import inside, integers_inside, unshifted
from fvd_dmd2.config import DMD2Config

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draw:
    """At which timestep t [B], and with which noise [B, C, T, H, W], samples are looked at."""

    t: Tensor
    noise: Tensor


@dataclass(frozen=True)
class ScoreTimesteps:
    """A distribution of timesteps: uniform, shifted towards noise, and kept in a range.

    first, last: between which a timestep is drawn before the shift. lowest, highest: between which it lies after it. Where the
    former are the pre-images of the latter, no mass piles up at the ends and the clamp takes off rounding only.
    """

    adapter: fvd.Adapter
    first: float
    last: float
    lowest: float
    highest: float
    shift: float | None
    integers: bool
    one_for_all: bool

    @classmethod
    def of_scores(cls, config: DMD2Config, adapter: fvd.Adapter) -> ScoreTimesteps:
        return cls._of_range(config, adapter, config.min_timestep_ratio, config.max_timestep_ratio)

    @classmethod
    def of_critic(cls, config: DMD2Config, adapter: fvd.Adapter) -> ScoreTimesteps:
        return (
            cls._of_range(config, adapter, 0.0, 1.0)
            if config.critic_timestep_range == "full"
            else cls.of_scores(config, adapter)
        )

    @classmethod
    def _of_range(cls, config: DMD2Config, adapter: fvd.Adapter, lowest: float, highest: float) -> ScoreTimesteps:
        steps, shift = adapter.num_train_timesteps, config.score_timestep_shift
        integers = config.score_timestep_draw == "integer"
        first, last = 0.0, float(steps - 1 if integers else steps)
        match config.score_timestep_range:
            case "inside":
                first, last = unshifted(adapter, steps * lowest, shift), min(last, unshifted(adapter, steps * highest, shift))
            case "before_shift":
                first, last = steps * lowest, min(last, steps * highest)
            case "clamp":
                pass
        return cls(
            adapter, first, last, steps * lowest, steps * highest, shift, integers, config.score_timestep_choice == "batch"
        )

    def sample(self, rng: fvd.StepRandom) -> Tensor:
        """t [B], float32."""
        uniform = rng.shared_rand() if self.one_for_all else rng.rand()
        if self.integers:
            t = integers_inside(uniform, math.ceil(self.first - _ROUNDING), math.floor(self.last + _ROUNDING))
        else:
            t = inside(uniform, self.first, self.last)
        return self.adapter.shift_and_clamp_timestep(t, self.shift).clamp(self.lowest, self.highest)


_ROUNDING = 1e-3
"""Timesteps. A bisection ends beside a whole number."""


@dataclass(frozen=True)
class TeacherPrediction:
    """x0: R, guided, float32. cond_x0: the conditional prediction alone, where R is another."""

    x0: Tensor
    cond_x0: Tensor | None


class Teacher:
    """R, the frozen teacher's x0 prediction with classifier-free guidance."""

    def __init__(self, adapter: fvd.Adapter, view: fvd.RoleView, config: DMD2Config) -> None:
        self.adapter = adapter
        self.view = view
        self.config = config
        self._in_one_pass = config.batch_guidance and adapter.joins_conditioning

    def predict_x0(self, x_t: Tensor, t: Tensor, batch: fvd.Batch) -> TeacherPrediction:
        """One forward where no unconditional one is needed, else one of twice the samples, or two."""
        if not self.config.needs_uncond:
            return TeacherPrediction(self.view.predict_x0(x_t, t, batch.cond), None)
        cond_x0, uncond_x0 = self._both(x_t, t, batch.cond, self._uncond(batch))
        return TeacherPrediction(guided(cond_x0, uncond_x0, self.config.standard_guidance_scale), cond_x0)

    def _both(self, x_t: Tensor, t: Tensor, cond: Conditioning, uncond: Conditioning) -> tuple[Tensor, Tensor]:
        if self._in_one_pass:
            try:
                both = self.adapter.join_conditioning([cond, uncond])
                cond_x0, uncond_x0 = self.view.predict_x0(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
                return cond_x0, uncond_x0
            except torch.OutOfMemoryError:
                self._in_one_pass = False
                logger.warning("too little memory for the teacher's guidance in one forward; from here on it makes two")
        return self.view.predict_x0(x_t, t, cond), self.view.predict_x0(x_t, t, uncond)

    def _uncond(self, batch: fvd.Batch) -> Conditioning:
        match self.config.cfg_uncond.text:
            case "keep":
                return batch.cond
            case "zero":
                return self.adapter.zero_conditioning(batch.cond)
            case "negative_prompt":
                return self._negative(batch)

    def _negative(self, batch: fvd.Batch) -> Conditioning:
        if batch.uncond is None:
            raise fvd.FvdError(
                "the batch has no unconditional conditioning although the adapter was asked for it at the start",
                cure="Report this to the authors of the family; `cfg_uncond: {text: zero}` does without it.",
            )
        return batch.uncond
