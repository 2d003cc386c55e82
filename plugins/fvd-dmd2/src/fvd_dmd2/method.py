"""DMD2: distribution matching distillation into a few-step student (arXiv:2405.14867, without the GAN term).

One rollout of the student an iteration, shared by both losses:

    x      = rollout(student)                                         with gradient when the student is due
    student:  x_t = add_noise(x, noise, t),  F = critic.predict_x0,  R = guided teacher.predict_x0,  dL/dx = (F - R) / w / numel
    critic:   predict(add_noise(x, noise', t'), t') regresses on training_target(x, noise', t')

The critic moves at every iteration, the student at every ``generator_update_interval``-th. Draws, in order: of the step,
the exit step; of each sample, the rollout's (see `_simulate`, `_from_data`), then (t, noise) of the student's loss
when it is due, then (t, noise) of the critic's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

import fvd
from fvd.adapters import Conditioning, LatentsSource
from fvd_dmd2.config import DMD2Config
from fvd_dmd2.ladder import LADDER_TIMESTEPS, check_shift, student_timesteps, unshifted_timestep
from fvd_dmd2.losses import MatchingGradient, distribution_matching_loss, guided_x0, matching_gradient, regression_loss


@dataclass(frozen=True)
class Rollout:
    """x0: the student's samples [B, C, T, H, W], float32. exit_step: mean index on the ladder of the last forward."""

    x0: Tensor
    exit_step: Tensor | float


class DMD2Method(fvd.Method):
    """Roles ``student`` and ``critic`` (trained), ``teacher`` (frozen). Any batch size; samples do not influence each other."""

    role_names = ("student", "teacher", "critic")

    def __init__(self, *, run: fvd.RunConfig, roles: fvd.RoleManager, adapter: fvd.Adapter) -> None:
        super().__init__(run=run, roles=roles, adapter=adapter)
        self.config = cast(DMD2Config, run.method_config)
        if adapter.num_train_timesteps != LADDER_TIMESTEPS:
            raise fvd.FvdError(
                f"dmd2 counts timesteps to {LADDER_TIMESTEPS}; this family counts to {adapter.num_train_timesteps}",
                cure="Use a family with 1000 training timesteps.",
            )
        self.student = adapter.bind(roles["student"])
        self.teacher = adapter.bind(roles["teacher"])
        self.critic = adapter.bind(roles["critic"])
        self.student_attn_kind = adapter.supported_attn_kind(self.config.attn_kind)
        steps = adapter.num_train_timesteps
        self.unshifted_range = (
            unshifted_timestep(adapter, steps * self.config.min_timestep_ratio),
            unshifted_timestep(adapter, steps * self.config.max_timestep_ratio),
        )
        timesteps = student_timesteps(self.config, run.pipeline_config.flow_shift)
        check_shift(self.config, adapter, timesteps)
        self.ladder = torch.tensor(timesteps, dtype=torch.float32, device=adapter.device)

    # --- what the method declares ---
    def optimizer_specs(self) -> Mapping[str, fvd.OptimizerSpec]:
        config = self.config
        student = fvd.OptimizerSpec.from_training(self.run.training)
        critic = replace(
            student,
            learning_rate=student.learning_rate if config.critic_learning_rate is None else config.critic_learning_rate,
            betas=config.critic_betas or student.betas,
            lr_scheduler=config.critic_lr_scheduler or student.lr_scheduler,
        )
        return {"student": student, "critic": critic}

    def roles_to_update(self, iteration: int) -> Sequence[str]:
        return ["student", "critic"] if self.student_is_due(iteration) else ["critic"]

    def student_is_due(self, iteration: int) -> bool:
        return iteration % self.config.generator_update_interval == 0

    @classmethod
    def latents_source(cls, run: fvd.RunConfig) -> LatentsSource:
        return "zeros" if cast(DMD2Config, run.method_config).rollout_mode == "simulate" else "data"

    @classmethod
    def sampling_plan(cls, run: fvd.RunConfig) -> fvd.SamplingPlan:
        """The ladder that the student is trained on, re-noised between its steps, unguided."""
        timesteps = student_timesteps(cast(DMD2Config, run.method_config), run.pipeline_config.flow_shift)
        return fvd.SamplingPlan(
            role="student",
            sampler_kind="sde",
            sampling_steps=(len(timesteps),),
            sampling_timesteps=timesteps,
            guidance_scale=1.0,
        )

    @property
    def teacher_is_guided(self) -> bool:
        """Whether the teacher needs a second, unconditional forward."""
        return self.config.standard_guidance_scale != 1.0 and self.config.cfg_uncond.text != "keep"

    def on_train_start(self) -> None:
        if self.teacher_is_guided and self.config.cfg_uncond.text == "negative_prompt":
            self.adapter.ensure_negative_conditioning()

    # --- the step ---
    def single_train_step(self, batch: fvd.RawBatch, iteration: int, *, rng: fvd.StepRandom) -> Iterator[fvd.Loss]:
        """Yields ``student_loss`` when the student is due, then ``critic_loss``."""
        prepared = self.adapter.prepare_batch(batch, latents_source=self.latents_source(self.run))
        student_is_due = self.student_is_due(iteration)
        rollout = self.roll_out(prepared, rng, with_grad=student_is_due)
        if student_is_due:
            yield self.student_loss(rollout.x0, prepared, rng)
            rollout = Rollout(rollout.x0.detach(), rollout.exit_step)  # lets go of the student's graph
        yield self.critic_loss(rollout, prepared, rng)

    def roll_out(self, batch: fvd.Batch, rng: fvd.StepRandom, *, with_grad: bool) -> Rollout:
        """The student's samples. Gradient, where wanted, flows through the last forward only."""
        if self.config.rollout_mode == "simulate":
            return self._simulate(batch, rng, with_grad)
        return self._from_data(batch, rng, with_grad)

    def _simulate(self, batch: fvd.Batch, rng: fvd.StepRandom, with_grad: bool) -> Rollout:
        """The student's own steps from pure noise, as it will be sampled, up to a random one.

        The exit step is shared by all samples and ranks, so that all make equally many forwards; steps after it are not
        made. Draws a sample: the initial noise, then one noise a step before the exit.
        """
        exit_step = rng.shared_index(len(self.ladder))
        x_t = rng.randn_like(batch.latents)
        with torch.no_grad():
            for step in range(exit_step):
                x0 = self._student_x0(x_t, self._ladder_timestep(step, batch), batch)
                x_t = self.adapter.add_noise(x0, rng.randn_like(x0), self._ladder_timestep(step + 1, batch))
        with torch.set_grad_enabled(with_grad):
            x0 = self._student_x0(x_t, self._ladder_timestep(exit_step, batch), batch)
        return Rollout(x0, float(exit_step))

    def _from_data(self, batch: fvd.Batch, rng: fvd.StepRandom, with_grad: bool) -> Rollout:
        """One step from noised data, at a step of each sample's own. Draws a sample: u of the step, the noise."""
        count = len(self.ladder)
        step = (rng.rand() * count).long().clamp(max=count - 1)  # count * (1 - 2^-24) may round to count
        t = self.ladder[step]
        x_t = self.adapter.add_noise(batch.latents, rng.randn_like(batch.latents), t)
        with torch.set_grad_enabled(with_grad):
            x0 = self._student_x0(x_t, t, batch)
        return Rollout(x0, step.float().mean())

    def student_loss(self, x0: Tensor, batch: fvd.Batch, rng: fvd.StepRandom) -> fvd.Loss:
        """Distribution matching (arXiv:2405.14867, eq. 2) on ``x0``, which carries the student's graph."""
        gradient, score_gap = self._matching_gradient(x0.detach(), batch, rng)
        metrics = {
            "dmd/normalizer": gradient.mean_over_kept(gradient.normalizer),
            "dmd/gradient_rms": gradient.value.square().mean().sqrt(),
            "dmd/score_gap": gradient.mean_over_kept(score_gap),
        }
        counts = {"dmd/non_finite_samples": (~gradient.kept).sum()}
        value = distribution_matching_loss(x0, gradient)
        return fvd.Loss("student_loss", value, role="student", metrics=metrics, counts=counts)

    @torch.no_grad()
    def _matching_gradient(self, x0: Tensor, batch: fvd.Batch, rng: fvd.StepRandom) -> tuple[MatchingGradient, Tensor]:
        """The gradient on ``x0``, and mean |F - R| of each sample [B]."""
        t = self.sample_score_timestep(rng)
        x_t = self.adapter.add_noise(x0, rng.randn_like(x0), t)
        fake_x0 = self.critic.predict_x0(x_t, t, batch.cond)
        real_x0 = self._guided_teacher_x0(x_t, t, batch)
        score_gap = (fake_x0.float() - real_x0.float()).abs().flatten(1).mean(dim=1)
        return matching_gradient(x0, fake_x0, real_x0), score_gap

    def critic_loss(self, rollout: Rollout, batch: fvd.Batch, rng: fvd.StepRandom) -> fvd.Loss:
        """The critic learns to denoise the student's samples, which carry no gradient."""
        x0 = rollout.x0
        t = self.sample_score_timestep(rng)
        noise = rng.randn_like(x0)
        prediction = self.critic.predict(self.adapter.add_noise(x0, noise, t), t, batch.cond)
        value = regression_loss(prediction, self.adapter.training_target(x0, noise, t))
        metrics = {
            "critic/sigma": t.mean() / self.adapter.num_train_timesteps,
            "rollout/x0_std": x0.std(),
            "rollout/exit_step": rollout.exit_step,
        }
        return fvd.Loss("critic_loss", value, role="critic", metrics=metrics)

    # --- its parts ---
    def sample_score_timestep(self, rng: fvd.StepRandom) -> Tensor:
        """t [B], shifted towards noise, inside the timestep range of the run file with no mass piled up at its ends.

        Uniform in the pre-image of the range under the shift, then shifted; the clamp only takes off rounding.
        """
        first, last = self.unshifted_range
        t = self.adapter.shift_and_clamp_timestep(first + (last - first) * rng.rand())
        steps = self.adapter.num_train_timesteps
        return t.clamp(steps * self.config.min_timestep_ratio, steps * self.config.max_timestep_ratio)

    def _guided_teacher_x0(self, x_t: Tensor, t: Tensor, batch: fvd.Batch) -> Tensor:
        cond_x0 = self.teacher.predict_x0(x_t, t, batch.cond)
        if not self.teacher_is_guided:
            return cond_x0
        uncond_x0 = self.teacher.predict_x0(x_t, t, self._uncond(batch))
        return guided_x0(cond_x0, uncond_x0, self.config.standard_guidance_scale)

    def _uncond(self, batch: fvd.Batch) -> Conditioning:
        if self.config.cfg_uncond.text == "zero":
            return self.adapter.zero_conditioning(batch.cond)
        if batch.uncond is None:
            raise fvd.FvdError(
                "the batch has no unconditional conditioning although the adapter was asked for it at the start",
                cure="Report this to the authors of the family; `cfg_uncond: {text: zero}` does without it.",
            )
        return batch.uncond

    def _student_x0(self, x_t: Tensor, t: Tensor, batch: fvd.Batch) -> Tensor:
        return self.student.predict_x0(x_t, t, batch.cond, attn_kind=self.student_attn_kind).float()

    def _ladder_timestep(self, step: int, batch: fvd.Batch) -> Tensor:
        """[B], all at ladder position ``step``."""
        return self.ladder[step].expand(batch.batch_size)
