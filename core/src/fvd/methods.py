"""Methods: the algorithm. Losses, rollouts and cadence, written in primitives; no family, no services.

A step *yields* its losses. The trainer backpropagates each before it asks for the next, so that two graphs are never
alive together. A method never yields inside a ``with`` block: the grad mode or autocast state would leak.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self

from torch import Tensor, nn

from fvd.adapters import Adapter, Batch, LatentsSource
from fvd.data.spec import RawBatch
from fvd.ema import Ema
from fvd.health import HealthRule
from fvd.metrics import MetricValue
from fvd.optim import OptimizerSpec
from fvd.rng import StepRandom
from fvd.roles import RoleHandle, RoleManager
from fvd.validation.request import PanelRequest, SamplingPlan, ValidationRequest

if TYPE_CHECKING:
    from fvd.config.models import RunConfig


@dataclass(frozen=True)
class Loss:
    """One scalar to backpropagate.

    name: how it is logged. value: 0-dim, float32, mean over the micro-batch. role: whose parameters it reaches.
    ctx: handed to `Adapter.backward`. metrics: further scalars to log, floats or detached 0-dim tensors (no host sync
    in a method: the trainer makes one a step), averaged over the micro-batches in which they appear; or a
    `fvd.metrics.WeightedMean`, which `fvd.metrics.per_bin` makes of a loss by timestep. counts: numbers that are summed
    over the micro-batches.
    """

    name: str
    value: Tensor
    role: str
    ctx: object | None = None
    metrics: Mapping[str, MetricValue] = field(default_factory=dict)
    counts: Mapping[str, Tensor | float] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """Base class of every method.

    Subclasses set ``role_names`` (those of the descriptor that a run must have; ``optional_role_names`` are the others) and
    write `single_train_step` and, where roles move at different rates, `roles_to_update`. ``run.method_config`` is the parsed
    `fvd.MethodConfig` that the descriptor names. Buffers and parameters that a method registers on itself (an average, a
    counter) are saved and restored with the checkpoint; gradients reach the roles' modules only.
    """

    role_names: ClassVar[tuple[str, ...]]
    optional_role_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, run: RunConfig, roles: RoleManager, adapter: Adapter) -> None:
        super().__init__()
        self.run = run
        self.roles = roles
        self.adapter = adapter

    @classmethod
    def build(cls, *, run: RunConfig, roles: RoleManager, adapter: Adapter) -> Self:
        """Require the roles and build optimizers. Raises FvdError for a role that is missing."""
        roles.require_roles(cls.role_names)
        method = cls(run=run, roles=roles, adapter=adapter)
        method.build_optimizers()
        return method

    @classmethod
    def build_roles(
        cls, *, run: RunConfig, roles: RoleManager, adapter: Adapter, latent_shape: tuple[int, int, int, int]
    ) -> list[RoleHandle]:
        """The roles that the descriptor says the method makes itself (`fvd.RoleNeeds`, ``made_by_method``), of those that the
        run file names; called before `build`, and only where it names any. On ``adapter.device``, trained, in float32, with
        initial weights that follow from ``run.training.seed``. latent_shape: (C, T, H, W) of the run. From then on they are
        roles like all others: optimized, clipped, averaged, saved."""
        return []

    # --- what a method declares ---
    @abstractmethod
    def single_train_step(self, batch: RawBatch, iteration: int, *, rng: StepRandom) -> Iterator[Loss]:
        """Yield the losses of one micro-batch. ``iteration`` counts from 1; all micro-batches of a step share it."""

    def optimizer_specs(self) -> Mapping[str, OptimizerSpec]:
        """One spec for each trained role. Default: what the run file says of the role, then `MethodConfig.role_defaults`."""
        return {handle.name: OptimizerSpec.of(self.run.optimizer_of(handle.name)) for handle in self.roles.trainable}

    def roles_to_update(self, iteration: int) -> Sequence[str]:
        """The roles whose optimizers move at this iteration, in the order in which they step."""
        return [handle.name for handle in self.roles.trainable]

    @classmethod
    def latents_source(cls, run: RunConfig) -> LatentsSource:
        """Whether training needs the latents of the data ("data"), or only text ("zeros")."""
        return "data"

    @classmethod
    def needs_trajectories(cls, run: RunConfig) -> bool:
        """Whether the data must hold a teacher's solutions (`fvd.data.trajectories`), which then come in
        ``RawBatch.on_host``. Default: no."""
        return False

    @classmethod
    def sampling_plan(cls, run: RunConfig) -> SamplingPlan:
        """How the result is meant to be sampled. Default: the first role, on the ladder of its config, or where that has none
        with the run file's sampler and steps."""
        training, ladder = run.training, run.method_config.sampling_ladder()
        if ladder is None:
            return SamplingPlan(
                role=cls.role_names[0],
                sampler_kind=run.pipeline_config.sampler_kind or "ode",
                sampling_steps=training.validation_sampling_steps,
                guidance_scale=training.validation_guidance_scale,
            )
        return SamplingPlan(
            role=cls.role_names[0],
            sampler_kind=ladder.sampler_kind,
            sampling_steps=(len(ladder.timesteps),),
            sampling_timesteps=ladder.timesteps,
            shift_timesteps=ladder.shift_timesteps,
            guidance_scale=ladder.guidance_scale,
        )

    def panel(self) -> PanelRequest | None:
        """Whose predictions validation shows side by side, beside the samples of the planned role. Default: nobody's."""
        return None

    def held_out_loss(self, batch: Batch, t: Tensor, noise: Tensor) -> Tensor | None:
        """The loss of each sample of ``batch``, [B] float32, at timesteps ``t`` [B] with ``noise`` [B, C, T, H, W]: of samples
        that are not trained on, so that it shows overfitting. Called under ``torch.no_grad``; draw nothing. Default: None, the
        method has none, and a run file that sets samples aside for it is refused. A method that has one says so in its
        descriptor, ``held_out_loss=True``."""
        return None

    def health_rules(self) -> Sequence[HealthRule]:
        """Alarms of this method's own, new objects; core has those for gradients, clipping and movement. Default: none."""
        return []

    def on_train_start(self) -> None:
        """Once, before the first step: `adapter.ensure_negative_conditioning()` where the method needs it."""

    def on_step_end(self, iteration: int) -> None:
        """Once a step, after the optimizers have moved and before anything is saved: averages of weights, counters."""

    # --- what the base class does with it ---
    def validation_request(self, step: int) -> ValidationRequest | None:
        """What to sample after ``step`` (0 = before training). None: nothing."""
        plan = self.sampling_plan(self.run)
        return ValidationRequest(
            plan=plan,
            sample_handle=self.roles[plan.role],
            weights=self.run.training.validation_weights,
            panel=self.panel(),
        )

    def build_optimizers(self) -> None:
        """For each trained role one optimizer over all its modules, with a schedule in that role's own updates, its clipping,
        and its average where the run keeps one."""
        specs = self.optimizer_specs()
        total_steps = self.count_role_steps(self.run.training.max_train_steps)
        for handle in self.roles.trainable:
            if handle.name not in specs:
                continue  # `fvd.step_contract.check_method` says so
            spec, ema = specs[handle.name], self.run.ema_of(handle.name)
            optimizer = spec.build_optimizer(handle.trainable_parameters())
            handle.optimizers["main"] = optimizer
            handle.lr_schedulers["main"] = spec.build_lr_scheduler(optimizer, total_steps[handle.name])
            handle.max_grad_norm = spec.max_grad_norm
            handle.ema = Ema(handle.modules, ema) if ema else None

    def begin_schedules_at(self, step: int) -> None:
        """In a run that branches off at ``step``, with roles that have moved: this run's schedules, each over the updates that
        its role has made and those to come, where the made ones have brought it. The updates made may be others than this run
        would have made."""
        specs = self.optimizer_specs()
        total_steps, until_now = self.count_role_steps(self.run.training.max_train_steps), self.count_role_steps(step)
        for handle in self.roles.trainable:
            to_come = total_steps[handle.name] - until_now[handle.name]
            schedule = specs[handle.name].build_lr_scheduler(handle.optimizers["main"], handle.updates + to_come)
            handle.lr_schedulers["main"] = schedule
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")  # they were made long ago
                for _ in range(handle.updates):
                    schedule.step()

    def count_role_steps(self, max_train_steps: int) -> dict[str, int]:
        """How often each trainable role steps in the whole run."""
        counts = {handle.name: 0 for handle in self.roles.trainable}
        for iteration in range(1, max_train_steps + 1):
            for role in self.roles_to_update(iteration):
                counts[role] = counts.get(role, 0) + 1  # a role that is not trained is refused when the step is due
        return counts
