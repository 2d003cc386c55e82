"""DMD2: distribution matching distillation into a few-step student (arXiv:2405.14867).

    x      = rollout(student)                          with gradient through its last forward, when the student is due
    student:  x_t = add_noise(x, noise, t),  F = critic.predict_x0,  R = guided teacher.predict_x0,  dL/dx = (F − R) / w / numel
    critic:   predict(add_noise(x, noise', t'), t') regresses on training_target(x, noise', t')

With ``regression_weight`` the student learns stored solutions of the teacher's ODE as well (`fvd_dmd2.regression`). Where the
run file names the role discriminator, the student's loss has an adversarial term, and the discriminator learns beside
the critic (section 4.3; `fvd_dmd2.gan`).

Draws, in order. Of the step: the exit step where all samples share it; then the score timestep where they share that. Of each
sample: the rollout's (see `DMD2Method.roll_out`), then those of the student's loss when it is due (t, noise, then the
adversarial term's, then the regression's rung), the rollout's again where the critic has one of its own, then the critic's (t,
noise), then the discriminator's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

import fvd
from fvd.adapters import Conditioning, LatentsSource
from fvd.data.trajectories import Trajectories
from fvd.losses import (
    MatchingGradient,
    distribution_matching_loss,
    matching_gradient,
    mean_per_sample,
    regression_loss,
    squared_error,
)
from fvd.metrics import MetricValue, moments, per_bin
from fvd.rng import to_device
from fvd.rollouts import simulate
from fvd_dmd2.config import DISCRIMINATOR, DMD2Config
from fvd_dmd2.gan import GanBranch, build_discriminator
from fvd_dmd2.health import rules
from fvd_dmd2.presets import LADDER_TIMESTEPS
from fvd_dmd2.regression import draw_pairs, regression_error, regression_term
from fvd_dmd2.scores import Draw, ScoreTimesteps, Teacher, TeacherPrediction

PANEL_TIMESTEPS = (250.0, 500.0, 750.0)
"""Where validation shows what teacher and critic predict."""


@dataclass(frozen=True)
class Rollout:
    """x0: the student's samples [B, C, T, H, W], float32. exit_step: mean index on the ladder of the last forward."""

    x0: Tensor
    exit_step: float

    def detached(self) -> Rollout:
        return Rollout(self.x0.detach(), self.exit_step)


class DMD2Method(fvd.Method):
    """Roles ``student`` and ``critic`` (trained), ``teacher`` (frozen), and where the run file names it ``discriminator``
    (trained). Any batch size; samples do not influence each other, unless the run file asks for it (``normalizer: batch``)."""

    role_names = ("student", "teacher", "critic")
    optional_role_names = (DISCRIMINATOR,)

    def __init__(self, *, run: fvd.RunConfig, roles: fvd.RoleManager, adapter: fvd.Adapter) -> None:
        super().__init__(run=run, roles=roles, adapter=adapter)
        self.config = config = cast(DMD2Config, run.method_config)
        if adapter.num_train_timesteps != LADDER_TIMESTEPS:
            raise fvd.FvdError(
                f"dmd2 counts timesteps to {LADDER_TIMESTEPS}; this family counts to {adapter.num_train_timesteps}",
                cure="Use a family with 1000 training timesteps.",
            )
        self.student = adapter.bind(roles["student"])
        self.critic = adapter.bind(roles["critic"])
        self.teacher = Teacher(adapter, adapter.bind(roles["teacher"]), config)
        self.student_attn_kind = adapter.supported_attn_kind(config.attn_kind)
        self.score_timesteps = ScoreTimesteps.of_scores(config, adapter)
        self.critic_timesteps = ScoreTimesteps.of_critic(config, adapter)
        ladder = torch.tensor(config.trained_steps, dtype=torch.float32, device=adapter.device)
        self.ladder = adapter.shift_and_clamp_timestep(ladder) if config.warp_denoising_step else ladder
        self.ladder_on_host: list[float] = self.ladder.tolist()
        self.gan = self._gan_branch() if DISCRIMINATOR in roles else None

    # --- what the method declares ---
    def roles_to_update(self, iteration: int) -> Sequence[str]:
        student = ["student"] if self.config.student_is_due(iteration) else []
        observers = ["critic", DISCRIMINATOR] if self.gan else ["critic"]
        return student + (observers if self.config.critic_is_due(iteration) else [])

    @classmethod
    def latents_source(cls, run: fvd.RunConfig) -> LatentsSource:
        """Text is enough where nothing looks at real latents."""
        simulates = cast(DMD2Config, run.method_config).rollout_mode == "simulate"
        return "zeros" if simulates and DISCRIMINATOR not in run.roles else "data"

    @classmethod
    def needs_trajectories(cls, run: fvd.RunConfig) -> bool:
        return cast(DMD2Config, run.method_config).regression_weight > 0

    @classmethod
    def build_roles(
        cls,
        *,
        run: fvd.RunConfig,
        roles: fvd.RoleManager,
        adapter: fvd.Adapter,
        latent_shape: tuple[int, int, int, int],
    ) -> list[fvd.RoleHandle]:
        """The discriminator."""
        config = cast(DMD2Config, run.method_config).gan
        source = adapter.bind(roles[config.feature_source])
        return [build_discriminator(DISCRIMINATOR, config, source, seed=run.training.seed)]

    def health_rules(self) -> Sequence[fvd.HealthRule]:
        training = self.run.training
        return rules(self.config, samples_a_step=training.train_batch_size * training.gradient_accumulation_steps)

    def panel(self) -> fvd.PanelRequest:
        """What teacher and critic make of the student's samples."""
        uncond: Literal["negative_prompt", "zero"] = "zero" if self.config.cfg_uncond.text == "zero" else "negative_prompt"
        scale = self.config.standard_guidance_scale if self.config.teacher_is_guided else 1.0
        columns = {
            "teacher": fvd.GuidedColumn(handle=self.roles["teacher"], guidance_scale=scale, uncond=uncond),
            "critic": fvd.GuidedColumn(handle=self.roles["critic"]),
        }
        return fvd.PanelRequest(columns=columns, timesteps=PANEL_TIMESTEPS)

    def on_train_start(self) -> None:
        if self.config.needs_uncond and self.config.cfg_uncond.text == "negative_prompt":
            self.adapter.ensure_negative_conditioning()

    # --- the step ---
    def single_train_step(self, batch: fvd.RawBatch, iteration: int, *, rng: fvd.StepRandom) -> Iterator[fvd.Loss]:
        """Yields ``student_loss`` when the student is due, then ``critic_loss`` when the critic is. ``regression_loss`` and
        ``discriminator_loss``, where the run has them, come after the one and the other."""
        if self.config.regression_weight:  # at the first step already, and whichever rung is drawn
            Trajectories.of(batch).require(self.ladder_on_host)
        prepared = self.adapter.prepare_batch(batch, latents_source=self.latents_source(self.run))
        losses = self.losses(batch, prepared, iteration, rng)
        # The trainer backpropagates between two yields; a list has both graphs at once.
        yield from losses if self.config.separate_graphs else list(losses)

    def losses(self, raw: fvd.RawBatch, batch: fvd.Batch, iteration: int, rng: fvd.StepRandom) -> Iterator[fvd.Loss]:
        student_is_due, critic_is_due = self.config.student_is_due(iteration), self.config.critic_is_due(iteration)
        rollout = self.roll_out(batch, rng, with_grad=student_is_due)
        if student_is_due:
            yield self.student_loss(rollout.x0, batch, rng)
            rollout = rollout.detached()  # lets go of the student's graph
            if self.config.regression_weight:
                yield self.regression_loss(raw, batch, rng)
        if critic_is_due:
            if student_is_due and not self.config.reuse_rollout:
                rollout = self.roll_out(batch, rng, with_grad=False)
            draw = Draw(self.critic_timesteps.sample(rng), rng.randn_like(rollout.x0))
            yield self.critic_loss(rollout, draw, batch)
            if self.gan:
                gan = self.gan.discriminator_loss(rollout.x0, batch.latents, batch, rng, draw)
                yield fvd.Loss("discriminator_loss", gan.value, role=DISCRIMINATOR, metrics=gan.metrics)

    def roll_out(self, batch: fvd.Batch, rng: fvd.StepRandom, *, with_grad: bool) -> Rollout:
        """The student's samples, from pure noise along its ladder, or in one step from noised data. Gradient, where wanted,
        flows through the last forward only. Draws of a sample: its exit step where each has its own, a noise, and in
        simulation one noise an sde step before its exit."""
        exit_steps = self.choose_exit_steps(rng)
        t = self.ladder[to_device(torch.tensor(exit_steps), self.ladder.device)]
        noise = rng.randn_like(batch.latents)
        if self.config.rollout_mode == "data_latent":
            x_t = self.adapter.add_noise(batch.latents, noise, t)
        else:
            x_t = simulate(
                lambda x_t, t: self.student_x0(x_t, t, batch.cond),
                self.adapter.add_noise,
                self.ladder,
                noise,
                exit_steps,
                between=self.config.between_steps,
                fresh_noise=lambda drawing: rng.randn_of(drawing, noise),
                early_exit=self.config.early_exit,
            )
        with torch.set_grad_enabled(with_grad):
            x0 = self.student_x0(x_t, t, batch.cond)
        return Rollout(x0, sum(exit_steps) / len(exit_steps))

    def student_loss(self, x0: Tensor, batch: fvd.Batch, rng: fvd.StepRandom) -> fvd.Loss:
        """Distribution matching (arXiv:2405.14867, eq. 2) on ``x0``, which carries the student's graph."""
        draw = Draw(self.score_timesteps.sample(rng), rng.randn_like(x0))
        t = draw.t
        with torch.no_grad():
            x_t = self.adapter.add_noise(x0, draw.noise, t)
            fake_x0 = self.critic.predict_x0(x_t, t, batch.cond)
            real = self.teacher.predict_x0(x_t, t, batch)
        gradient = matching_gradient(
            x0.detach(),
            fake_x0,
            real.x0,
            over=self.config.normalizer,
            guard=self.config.normalizer_guard,
            epsilon=self.config.normalizer_epsilon,
        )
        value = distribution_matching_loss(x0, gradient)

        metrics = self.student_metrics(x0.detach(), fake_x0, real, gradient, t)
        if self.latents_source(self.run) == "data":
            metrics |= moments("dmd2/data_x0", batch.latents, gradient.kept)
        if self.gan and self.config.gan.weight_generator:
            gan = self.gan.generator_loss(x0, batch, rng, draw)
            value = value + gan.value
            metrics |= gan.metrics
        counts = {"dmd2/non_finite_samples": (~gradient.kept).sum()}
        return fvd.Loss("student_loss", value, role="student", metrics=metrics, counts=counts)

    def regression_loss(self, raw: fvd.RawBatch, batch: fvd.Batch, rng: fvd.StepRandom) -> fvd.Loss:
        """Regression on the teacher's ODE (arXiv:2311.18828, eq. 9), with a graph of its own."""
        pairs = draw_pairs(Trajectories.of(raw), self.ladder_on_host, rng, batch.latents)
        errors = regression_error(self.student_x0, pairs, batch.cond)
        mean, metrics = regression_term(errors, raw.dropped)
        return fvd.Loss("regression_loss", self.config.regression_weight * mean, role="student", metrics=metrics)

    def critic_loss(self, rollout: Rollout, draw: Draw, batch: fvd.Batch) -> fvd.Loss:
        """The critic learns to denoise the student's samples, which carry no gradient."""
        x0, t, noise, adapter = rollout.x0, draw.t, draw.noise, self.adapter
        x_t = adapter.add_noise(x0, noise, t)
        if self.config.critic_target == "native":
            prediction, target = self.critic.predict(x_t, t, batch.cond), adapter.training_target(x0, noise, t)
        else:
            prediction, target = self.critic.predict_x0(x_t, t, batch.cond), x0
        value = regression_loss(prediction, target)
        metrics: dict[str, MetricValue] = {
            "critic/sigma": t.mean() / LADDER_TIMESTEPS,
            "rollout/x0_std": moments("x0", x0, torch.ones_like(t, dtype=torch.bool))["x0_std"],
            "rollout/exit_step": rollout.exit_step,
            **per_bin("critic_loss", squared_error(prediction.detach(), target), t, LADDER_TIMESTEPS),
        }
        return fvd.Loss("critic_loss", value, role="critic", metrics=metrics)

    # --- its parts ---
    def student_metrics(
        self, x0: Tensor, fake_x0: Tensor, real: TeacherPrediction, gradient: MatchingGradient, t: Tensor
    ) -> dict[str, MetricValue]:
        """What tells whether it goes well: of the samples that are kept, and not of how they are batched."""
        unguided_x0 = real.x0 if real.cond_x0 is None else real.cond_x0
        per_sample = {
            "dmd2/gradient_rms": mean_per_sample(gradient.value.square()).sqrt(),
            "dmd2/gradient_norm": gradient.value.flatten(1).norm(dim=1),
            "dmd2/normalizer": mean_per_sample(gradient.normalizer),
            "dmd2/score_gap": mean_per_sample((fake_x0 - real.x0).abs()),
            "dmd2/critic_gap": mean_per_sample((fake_x0 - x0).abs()),
            "dmd2/teacher_gap": mean_per_sample((unguided_x0 - x0).abs()),
        }
        return {
            **{name: gradient.mean_over_kept(values) for name, values in per_sample.items()},
            **moments("dmd2/student_x0", x0, gradient.kept),
            **moments("dmd2/teacher_x0", real.x0, gradient.kept),
            **({} if real.cond_x0 is None else moments("dmd2/teacher_cond_x0", real.cond_x0, gradient.kept)),
            **per_bin("student_loss", 0.5 * mean_per_sample(gradient.value.square()), t, LADDER_TIMESTEPS),
        }

    def _gan_branch(self) -> GanBranch:
        config = self.config.gan
        source = self.adapter.bind(self.roles[config.feature_source])
        return GanBranch(config, self.adapter, self.roles[DISCRIMINATOR], source, self.score_timesteps.sample)

    def choose_exit_steps(self, rng: fvd.StepRandom) -> list[int]:
        """On which rung of the ladder each sample is trained."""
        count = len(self.ladder)
        if self.config.step_choice == "sample":
            return rng.indices(count)
        return [rng.shared_index(count)] * len(rng.per_sample)

    def student_x0(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return self.student.predict_x0(x_t, t, cond, attn_kind=self.student_attn_kind).float()
