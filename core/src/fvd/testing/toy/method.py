"""The smallest honest method: one role, one loss, no settings. What a family's author tests against."""

from __future__ import annotations

from collections.abc import Iterator

from torch.nn import functional

import fvd


class ToyMethod(fvd.Method):
    """``mean((predict(x_t, t, cond) - training_target(x0, noise, t))^2)`` at uniform t, shifted. Draws a sample, in
    order: t, noise."""

    role_names = ("student",)

    def single_train_step(self, batch: fvd.RawBatch, iteration: int, *, rng: fvd.StepRandom) -> Iterator[fvd.Loss]:
        prepared = self.adapter.prepare_batch(batch, latents_source="data")
        t = self.adapter.shift_and_clamp_timestep(self.adapter.num_train_timesteps * rng.rand())
        noise = rng.randn_like(prepared.latents)
        x_t = self.adapter.add_noise(prepared.latents, noise, t)
        prediction = self.adapter.bind(self.roles["student"]).predict(x_t, t, prepared.cond)
        target = self.adapter.training_target(prepared.latents, noise, t)
        yield fvd.Loss("loss", functional.mse_loss(prediction, target), role="student")
