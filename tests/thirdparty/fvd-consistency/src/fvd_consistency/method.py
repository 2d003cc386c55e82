import copy
from collections.abc import Iterator

import torch
from torch import nn

import fvd


class Consistency(fvd.Method):
    """f(x_t, t) regresses on average_f(x_s, s), x_s one Euler step of the teacher below x_t (arXiv:2303.01469, alg. 2)."""

    role_names = ("student", "teacher")

    def __init__(self, *, run: fvd.RunConfig, roles: fvd.RoleManager, adapter: fvd.Adapter) -> None:
        super().__init__(run=run, roles=roles, adapter=adapter)
        student = roles["student"]
        self.student, self.teacher = adapter.bind(student), adapter.bind(roles["teacher"])
        self.average = nn.ModuleDict(copy.deepcopy(student.modules)).requires_grad_(False)
        self.target = adapter.bind(fvd.RoleHandle("average", student.family, False, dict(self.average)))

    def single_train_step(self, batch: fvd.RawBatch, iteration: int, *, rng: fvd.StepRandom) -> Iterator[fvd.Loss]:
        adapter = self.adapter
        prepared = adapter.prepare_batch(batch, latents_source="data")
        cond, noise = prepared.cond, rng.randn_like(prepared.latents)
        t = adapter.shift_and_clamp_timestep(adapter.num_train_timesteps * rng.rand())
        s = (t - self.run.method_config.gap).clamp(min=0)
        x_t = adapter.add_noise(prepared.latents, noise, t)
        with torch.no_grad():
            x_s = adapter.add_noise(self.teacher.predict_x0(x_t, t, cond), self.teacher.predict_noise(x_t, t, cond), s)
            goal = self.target.predict_x0(x_s, s, cond)
        value = (self.student.predict_x0(x_t, t, cond) - goal).square().mean()
        sigma = t.mean() / adapter.num_train_timesteps
        yield fvd.Loss("loss", value, role="student", metrics={"sigma": sigma}, counts={"at_data": (s == 0).sum()})

    @torch.no_grad()
    def on_step_end(self, iteration: int) -> None:
        """After the optimizer has moved; code behind the yield runs before that, once a micro-batch."""
        for mean, module in zip(self.average.values(), self.roles["student"].modules.values(), strict=True):
            for old, new in zip(mean.parameters(), module.parameters(), strict=True):
                old.lerp_(new, 1 - self.run.method_config.decay)
