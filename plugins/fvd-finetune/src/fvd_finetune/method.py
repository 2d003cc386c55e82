"""Supervised finetuning: regress the network's prediction on its target at random noise levels.

    u ~ density,  t = shift(N (1 - u)),  x_t = add_noise(x0, noise, t)
    loss = mean((predict(x_t, t, cond) - training_target(x0, noise, t))^2)

For a flow-matching family this is conditional flow matching (Lipman et al. 2022; Esser et al. 2024) with velocity
target noise - x0, unweighted. Draws a sample, in order: u, noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch.nn import functional

import fvd
from fvd_finetune.config import FinetuneConfig
from fvd_finetune.densities import sample_u


class FinetuneMethod(fvd.Method):
    """Role ``student`` (trained). Any batch size; batch composition changes no sample's gradient."""

    role_names = ("student",)

    def __init__(self, *, run: fvd.RunConfig, roles: fvd.RoleManager, adapter: fvd.Adapter) -> None:
        super().__init__(run=run, roles=roles, adapter=adapter)
        self.config = cast(FinetuneConfig, run.method_config)
        self.student = adapter.bind(roles["student"])
        self.attn_kind = adapter.supported_attn_kind(self.config.attn_kind)

    def single_train_step(self, batch: fvd.RawBatch, iteration: int, *, rng: fvd.StepRandom) -> Iterator[fvd.Loss]:
        """Yields one loss, ``loss``, with the mean noise level t / N as metric ``sigma``."""
        prepared = self.adapter.prepare_batch(batch, latents_source=self.latents_source(self.run))
        x0, steps = prepared.latents, self.adapter.num_train_timesteps

        t = self.adapter.shift_and_clamp_timestep(steps * (1 - sample_u(self.config, rng)))
        noise = rng.randn_like(x0)
        x_t = self.adapter.add_noise(x0, noise, t)

        prediction = self.student.predict(x_t, t, prepared.cond, attn_kind=self.attn_kind)
        target = self.adapter.training_target(x0, noise, t)
        value = functional.mse_loss(prediction.float(), target.float())
        yield fvd.Loss("loss", value, role="student", metrics={"sigma": t.mean() / steps})
