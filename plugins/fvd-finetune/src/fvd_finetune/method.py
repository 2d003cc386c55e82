"""Supervised finetuning: regress the network's prediction on its target at random noise levels.

    u ~ density,  t = shift(N (1 - u)),  x_t = add_noise(x0, noise, t)
    loss = mean((predict(x_t, t, cond) - training_target(x0, noise, t))^2)

For a flow-matching family this is conditional flow matching (Lipman et al. 2022; Esser et al. 2024) with velocity
target noise - x0, unweighted. Draws a sample, in order: u, noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import Tensor

import fvd
from fvd.losses import squared_error
from fvd.timesteps import logit_normal, mode
from fvd_finetune.config import FinetuneConfig


class FinetuneMethod(fvd.Method):
    """Role ``student`` (trained). Any batch size; batch composition changes no sample's gradient."""

    role_names = ("student",)

    def __init__(self, *, run: fvd.RunConfig, roles: fvd.RoleManager, adapter: fvd.Adapter) -> None:
        super().__init__(run=run, roles=roles, adapter=adapter)
        self.config = cast(FinetuneConfig, run.method_config)
        self.student = adapter.bind(roles["student"])
        self.attn_kind = adapter.supported_attn_kind(self.config.attn_kind)

    def single_train_step(self, batch: fvd.RawBatch, iteration: int, *, rng: fvd.StepRandom) -> Iterator[fvd.Loss]:
        """Yields one loss, ``loss``, with the mean noise level t / N as metric ``sigma`` and the loss of each timestep bin."""
        prepared, steps = self.adapter.prepare_batch(batch, latents_source="data"), self.adapter.num_train_timesteps

        t = self.adapter.shift_and_clamp_timestep(steps * (1 - self.sample_u(rng)))
        noise = rng.randn_like(prepared.latents)
        losses = self.regression(prepared, t, noise)

        bins = fvd.per_bin("loss", losses, t, steps)
        yield fvd.Loss("loss", losses.mean(), role="student", metrics={"sigma": t.mean() / steps, **bins})

    def sample_u(self, rng: fvd.StepRandom) -> Tensor:
        """u [B] in [0, 1], one draw a sample; large u is low noise."""
        match self.config.timestep_density:
            case "uniform":
                return rng.rand()
            case "logit_normal":
                return logit_normal(rng.randn(), self.config.logit_mean, self.config.logit_std)
            case "mode":
                return mode(rng.rand(), self.config.mode_scale)

    def regression(self, batch: fvd.Batch, t: Tensor, noise: Tensor) -> Tensor:
        """The squared error of each sample, [B]."""
        x_t = self.adapter.add_noise(batch.latents, noise, t)
        prediction = self.student.predict(x_t, t, batch.cond, attn_kind=self.attn_kind)
        return squared_error(prediction, self.adapter.training_target(batch.latents, noise, t))

    def held_out_loss(self, batch: fvd.Batch, t: Tensor, noise: Tensor) -> Tensor:
        """What it is trained on."""
        return self.regression(batch, t, noise)
