"""What goes wrong in DMD2, and how it shows. Light.

Written with the student's samples x and, at a noised x, the predictions of the teacher R (guided; R_c without guidance) and of
the critic F. All figures are medians over steps: x, R and F depend on the timesteps drawn.
"""

from __future__ import annotations

from collections.abc import Mapping

import fvd
from fvd.health import LowestMedian, RecentMedian, Rise
from fvd_dmd2.config import DMD2Config

STUDENT_STD = "train/dmd2/student_x0_std"
TEACHER_STD = "train/dmd2/teacher_x0_std"
UNGUIDED_STD = "train/dmd2/teacher_cond_x0_std"
DATA_STD = "train/dmd2/data_x0_std"
CRITIC_GAP = "train/dmd2/critic_gap"
NORMALIZER = "train/dmd2/normalizer"
TEACHER_GAP = "train/dmd2/teacher_gap"
CRITIC_LOSS = "train/critic_loss"
DROPPED = "train/dmd2/non_finite_samples"


def rules(config: DMD2Config, *, samples_a_step: int) -> list[fvd.HealthRule]:
    """New rules for one run. samples_a_step: of all its micro-batches."""
    found: list[fvd.HealthRule] = [
        Collapse(), CriticBehind(), CriticExploding(), AllSamplesDropped(samples_a_step)
    ]  # fmt: skip
    return [*found, TeacherGuidedTwice(config.standard_guidance_scale)] if config.teacher_is_guided else found


class Collapse(fvd.HealthRule):
    """The student's samples lose their spread: they turn grey, or all alike.

    The spread of x has fallen below ``of_start`` of what the student began with, and below ``of_reference`` of the data's
    (where data are there) or of the unguided teacher's predictions on the student's own samples. Both: a student that begins
    from random weights may begin with any spread, and a teacher at high noise predicts a mean, with less spread than data
    have. A half is far outside what a change of prompts or of exit steps makes of a median over ``window`` student updates.
    """

    name = "collapse"
    watches = (STUDENT_STD, TEACHER_STD)
    fires_when = "the spread of the student's samples falls below half of what it was, and of the data's or the teacher's 0.7"
    remedy = (
        "Go back to a checkpoint before the fall (--resume CHECKPOINT, with a new training.output_dir). Lower the student's "
        "learning rate, or train the critic more (generator_update_interval, roles.critic.optimizer.learning_rate); check "
        "real_score_guidance_scale."
    )

    def __init__(self, *, of_start: float = 0.5, of_reference: float = 0.7, window: int = 20) -> None:
        self._of_start, self._of_reference = of_start, of_reference
        self._start, self._student, self._reference = (RecentMedian(window) for _ in range(3))

    def observe(self, metrics: Mapping[str, float]) -> str | None:
        student = metrics[STUDENT_STD]
        reference = metrics.get(DATA_STD, metrics.get(UNGUIDED_STD, metrics[TEACHER_STD]))
        if student > 0:  # 0 where every sample was dropped
            for series, value in ((self._student, student), (self._reference, reference)):
                series.add(value)
            if not self._start.full:
                self._start.add(student)
        now, start, other = self._student.value, self._start.value, self._reference.value
        if not self._start.full or now > self._of_start * start or now > self._of_reference * other:
            return None
        whose = "the data's" if DATA_STD in metrics else "the teacher's on the same samples"
        return f"the student's x0 has a standard deviation of {now:.3g}; it began with {start:.3g}, and {whose} is {other:.3g}"


class CriticBehind(fvd.HealthRule):
    """The student moves faster than the critic follows, so that F is the score of samples that the student no longer makes.

    Either the critic denoises the student's own samples no better than the teacher, which has never seen them: mean |F − x|
    over mean |R_c − x|, without guidance, has a median above ``no_better`` over ``long_window`` student updates. A critic that
    follows is better from the first updates on (0.2 to 0.99 on the toys; at 0.5 % of the right rate 1.01 to 1.02), and
    where student and teacher agree both are equal.

    Or: the critic's loss, measured on the student's newest samples, stands ``factor`` above its best level, and the critic has
    lost ground against the teacher: mean |F − x| / mean |R − x|, on the same samples at the same noise, stands
    ``ground`` above its lowest. The loss alone would not do: that of a perfect critic rises too where the student's samples
    gain detail, but then the teacher's error rises with it.

    From random weights a critic needs a few hundred steps, in which the student moves as well: on the toys the loss rises
    1.3 to 2 times at any batch size, and the ratio 1.5 times; behind a critic of rate 0 they rise 5 and 2.5 times, and on.
    Medians of 100 critic steps and 20 student updates leave a tenth of the noise of timesteps.
    """

    name = "critic_behind"
    watches = (CRITIC_LOSS, NORMALIZER)
    asked_with = "any"  # where only one of the two roles moves in a step, these never come together
    fires_when = (
        "the critic's loss stands 2.5 times above its best level and it loses ground against the teacher, or it denoises the "
        "student's samples worse than the teacher does"
    )
    remedy = (
        "Train the critic more for each student update: raise generator_update_interval or "
        "roles.critic.optimizer.learning_rate, or lower the student's rate, and go on from a checkpoint before it fell behind "
        "(--resume CHECKPOINT, with a new training.output_dir)."
    )

    def __init__(
        self,
        *,
        factor: float = 2.5,
        ground: float = 1.5,
        no_better: float = 1.005,
        critic_window: int = 100,
        student_window: int = 20,
        long_window: int = 50,
    ) -> None:
        self._factor, self._ground, self._no_better = factor, ground, no_better
        self._loss, self._against_teacher = LowestMedian(critic_window), LowestMedian(student_window)
        self._against_unguided = RecentMedian(long_window)

    def observe(self, metrics: Mapping[str, float]) -> str | None:
        if CRITIC_LOSS in metrics:
            self._loss.add(metrics[CRITIC_LOSS])
        if metrics.get(NORMALIZER):  # 0 where every sample was dropped
            self._against_teacher.add(metrics[CRITIC_GAP] / metrics[NORMALIZER])
        if metrics.get(TEACHER_GAP):
            self._against_unguided.add(metrics[CRITIC_GAP] / metrics[TEACHER_GAP])
        if self._against_unguided.full and self._against_unguided.value > self._no_better:
            share = self._against_unguided.value
            return f"the critic's error on the student's samples is {share:.3g} of the teacher's, which has never seen them"
        loss, best = self._loss.median.value, self._loss.value
        ratio, lowest = self._against_teacher.median.value, self._against_teacher.value
        if not (loss > self._factor * best and ratio > self._ground * lowest):
            return None
        return (
            f"the critic's loss on the student's samples is {loss:.3g}, {loss / best:.2g} times its best level, and its error "
            f"there has grown from {lowest:.2g} to {ratio:.2g} of the teacher's"
        )


class CriticExploding(fvd.HealthRule):
    """The critic's predictions have nothing to do with the student's samples any more.

    Either mean |F − x| is ``worthless`` times the standard deviation of x: a constant would be 0.8 of it away, so that 3 is
    worse than no critic at all. Or the critic's loss has risen ``factor`` times within 20 steps over the 100 before (`Rise`).
    """

    name = "critic_exploding"
    watches = (CRITIC_LOSS, STUDENT_STD)
    asked_with = "any"
    fires_when = (
        "the critic is further from the student's samples than 3 of their standard deviations, or its loss rises 5 times"
    )
    remedy = (
        "Lower roles.critic.optimizer.learning_rate, and go on from a checkpoint before the rise (--resume CHECKPOINT, with a "
        "new training.output_dir): the student has followed this critic since. Or start again with a longer warm-up."
    )

    def __init__(self, *, worthless: float = 3.0, factor: float = 5.0, window: int = 10) -> None:
        self._worthless = worthless
        self._distance = RecentMedian(window)
        self._rise = Rise(factor)

    def observe(self, metrics: Mapping[str, float]) -> str | None:
        if CRITIC_LOSS in metrics:
            self._rise.add(metrics[CRITIC_LOSS])
        if metrics.get(STUDENT_STD):
            self._distance.add(metrics[CRITIC_GAP] / metrics[STUDENT_STD])
        if self._distance.full and self._distance.value > self._worthless:
            return f"the critic's predictions are {self._distance.value:.3g} standard deviations from the student's samples"
        if self._rise.has_risen:
            return f"the critic's loss has risen from {self._rise.earlier_level:.3g} to {self._rise.level:.3g}"
        return None


class TeacherGuidedTwice(fvd.HealthRule):
    """Guidance throws the teacher's predictions far out of the data.

    The spread of R is ``factor`` times that of R_c, and that of x: guidance of 3 to 7 adds some tenths to the spread of a video
    model's predictions; where it doubles, the teacher has guidance in its weights already, or the scale is meant in
    another convention. It ends when the student has followed; by then it is over-saturated.
    """

    name = "teacher_guided_twice"
    watches = (TEACHER_STD, UNGUIDED_STD, STUDENT_STD)
    fires_when = "the guided teacher's predictions have twice the spread of its unguided ones, and of the student's samples"

    def __init__(self, guidance_scale: float, *, factor: float = 2.0, window: int = 10) -> None:
        self.remedy = (
            "If the teacher is distilled with guidance, or takes its guidance as an input, train without: "
            f"guidance_convention: standard and real_score_guidance_scale: 1. If not, {guidance_scale:g} (standard convention: "
            "1 = none) is too much: check guidance_convention."
        )
        self._scale, self._factor = guidance_scale, factor
        self._over_unguided, self._over_student = RecentMedian(window), RecentMedian(window)

    def observe(self, metrics: Mapping[str, float]) -> str | None:
        guided, unguided, student = (metrics[name] for name in self.watches)
        if unguided > 0 and student > 0:
            self._over_unguided.add(guided / unguided)
            self._over_student.add(guided / student)
        over_unguided, over_student = self._over_unguided.value, self._over_student.value
        if not self._over_unguided.full or min(over_unguided, over_student) < self._factor:
            return None
        return (
            f"at guidance {self._scale:g} the teacher's predictions have {over_unguided:.3g} times the spread of its unguided "
            f"ones, and {over_student:.3g} times that of the student's samples"
        )


class AllSamplesDropped(fvd.HealthRule):
    """Teacher or critic give NaN or infinite numbers for every sample, so that nothing is learnt from the step."""

    name = "samples_dropped"
    watches = (DROPPED,)
    fires_when = "every sample of a student update is dropped as non-finite; 10 in a row end the run"
    remedy = (
        "The weights of teacher or critic are not finite, or give overflow in this precision: try "
        "training.mixed_precision: 'no', look at the critic's loss, and check the teacher's folder."
    )

    def __init__(self, samples_a_step: int, *, ends_run_after: int = 10) -> None:
        self._samples_a_step = samples_a_step
        self.ends_run_after = ends_run_after

    def observe(self, metrics: Mapping[str, float]) -> str | None:
        if metrics[DROPPED] < self._samples_a_step:
            return None
        return (
            f"all {self._samples_a_step} samples of the student's update were dropped: teacher or critic is not finite on them"
        )
