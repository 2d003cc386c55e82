"""DMD2's losses and gradients against an independent float64 reference, written here from the formulas.

The reference evaluates deep copies of the networks in float64, and replays the same draws in the documented order. It
shares no code with `fvd.flow`, `fvd.adapters` or `fvd_dmd2`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from small_video import NEGATIVE_PROMPT, SmallVideoAdapter, small_raw_batch, small_roles, small_run

from fvd import RawBatch, RoleManager, StepRandom
from fvd.testing.steps import step_random
from fvd_dmd2.config import DMD2Config
from fvd_dmd2.method import DMD2Method

LADDER = (1000.0, 750.0, 500.0, 250.0)
SHIFT = 5.0


@dataclass
class Expected:
    student_loss: torch.Tensor | None
    student_grad: list[torch.Tensor]
    critic_loss: torch.Tensor
    critic_grad: list[torch.Tensor]
    exit_step: float


class Reference:
    """The formulas of arXiv:2405.14867 with the flow-matching parametrisation, float64."""

    def __init__(
        self, roles: RoleManager, raw: RawBatch, *, scale: float, warp: bool, uncond: str, shift: float = SHIFT
    ) -> None:
        self.nets = {handle.name: copy.deepcopy(handle.modules["transformer"]).double() for handle in roles}
        self.data = raw.tensors["vae_latent"].double()
        self.text = raw.tensors["text_embedding"].double()
        self.mask = raw.tensors["text_embedding_mask"].double()
        self.scale, self.uncond, self.shift = scale, uncond, shift
        fraction = torch.tensor(LADDER, dtype=torch.float64) / 1000
        self.sigmas = shift * fraction / (1 + (shift - 1) * fraction) if warp else fraction

    def velocity(self, role: str, x_t: torch.Tensor, sigma: torch.Tensor, uncond: bool = False) -> torch.Tensor:
        text, mask = self.text, self.mask
        if uncond and self.uncond == "zero":
            text = torch.zeros_like(text)
        elif uncond:
            negative = SmallVideoAdapter().encode_prompts([NEGATIVE_PROMPT])
            text = negative.embeddings.double().expand(len(x_t), -1, -1)
            mask = negative.mask.double().expand(len(x_t), -1)
        return self.nets[role](x_t, sigma, text, mask)

    def x0(self, role: str, x_t: torch.Tensor, sigma: torch.Tensor, uncond: bool = False) -> torch.Tensor:
        return x_t - sigma.view(-1, 1, 1, 1, 1) * self.velocity(role, x_t, sigma, uncond)

    def noised(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        s = sigma.view(-1, 1, 1, 1, 1)
        return (1 - s) * x0 + s * noise

    def normal(self, rng: StepRandom) -> torch.Tensor:
        return torch.stack([torch.randn(self.data.shape[1:], generator=g) for g in rng.per_sample]).double()

    def uniform(self, rng: StepRandom) -> torch.Tensor:
        return torch.stack([torch.rand((), generator=g) for g in rng.per_sample]).double()

    def score_sigma(self, rng: StepRandom, low: float, high: float) -> torch.Tensor:
        def preimage(sigma: float) -> float:
            return sigma / (self.shift - (self.shift - 1) * sigma)

        u = preimage(low) + (preimage(high) - preimage(low)) * self.uniform(rng)
        return self.shift * u / (1 + (self.shift - 1) * u)

    def rollout(self, mode: str, rng: StepRandom) -> tuple[torch.Tensor, float]:
        batch = len(self.data)
        if mode == "data_latent":
            index = torch.tensor([int(torch.randint(len(self.sigmas), (), generator=g)) for g in rng.per_sample])
            x_t = self.noised(self.data, self.normal(rng), self.sigmas[index])
            return self.x0("student", x_t, self.sigmas[index]), float(index.double().mean())
        k = int(torch.randint(len(self.sigmas), (), generator=rng.shared))
        x_t = self.normal(rng)
        for j in range(k):
            with torch.no_grad():
                clean = self.x0("student", x_t, self.sigmas[j].expand(batch))
            x_t = self.noised(clean, self.normal(rng), self.sigmas[j + 1].expand(batch))
        return self.x0("student", x_t, self.sigmas[k].expand(batch)), float(k)

    def step(self, mode: str, rng: StepRandom, *, student_due: bool, low: float = 0.02, high: float = 0.98) -> Expected:
        x, exit_step = self.rollout(mode, rng)
        student_loss, student_grad = None, []
        if student_due:
            sigma = self.score_sigma(rng, low, high)
            x_t = self.noised(x.detach(), self.normal(rng), sigma)
            with torch.no_grad():
                fake = self.x0("critic", x_t, sigma)
                cond, uncond = self.x0("teacher", x_t, sigma), self.x0("teacher", x_t, sigma, uncond=True)
                real = uncond + self.scale * (cond - uncond)
                g = torch.stack([(f - r) / (s - r).abs().mean() for f, r, s in zip(fake, real, x, strict=True)])
            student_loss = 0.5 * (g**2).mean()
            student_grad = list(torch.autograd.grad(x, list(self.nets["student"].parameters()), g / g.numel()))
        x = x.detach()
        sigma = self.score_sigma(rng, 0.0, 1.0)
        noise = self.normal(rng)
        critic_loss = ((self.velocity("critic", self.noised(x, noise, sigma), sigma) - (noise - x)) ** 2).mean()
        critic_grad = torch.autograd.grad(critic_loss, list(self.nets["critic"].parameters()))
        return Expected(student_loss, student_grad, critic_loss.detach(), list(critic_grad), exit_step)


def relative_error(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    flat_got = torch.cat([tensor.double().flatten() for tensor in got])
    flat_want = torch.cat([tensor.flatten() for tensor in want])
    return float((flat_got - flat_want).norm() / flat_want.norm())


def grads(method: DMD2Method, role: str) -> list[torch.Tensor]:
    return [parameter.grad for parameter in method.roles[role].modules["transformer"].parameters()]


def compare(config: DMD2Config, reference_scale: float, *, batch_size: int, iteration: int) -> float:
    """Run one step both ways; returns the exit step."""
    roles = small_roles({"student": True, "teacher": False, "critic": True}, seed=7)
    raw = small_raw_batch(batch_size, seed=3)
    reference = Reference(
        roles, raw, scale=reference_scale, warp=config.warp_denoising_step, uncond=config.cfg_uncond.text
    ).step(
        config.rollout_mode,
        step_random(iteration, batch_size),
        student_due=iteration % config.generator_update_interval == 0,
        low=config.min_timestep_ratio,
        high=config.max_timestep_ratio,
    )
    adapter = SmallVideoAdapter(flow_shift=SHIFT)
    method = DMD2Method.build(run=small_run(roles, config, flow_shift=SHIFT), roles=roles, adapter=adapter)
    method.on_train_start()

    losses = {}
    for loss in method.single_train_step(raw, iteration, rng=step_random(iteration, batch_size)):
        loss.value.backward()
        losses[loss.name] = loss

    if reference.student_loss is None:
        assert list(losses) == ["critic_loss"]
        assert all(grad is None for grad in grads(method, "student"))
    else:
        assert list(losses) == ["student_loss", "critic_loss"]
        torch.testing.assert_close(losses["student_loss"].value.double(), reference.student_loss, rtol=5e-6, atol=0)
        assert relative_error(grads(method, "student"), reference.student_grad) < 5e-6
    torch.testing.assert_close(losses["critic_loss"].value.detach().double(), reference.critic_loss, rtol=5e-6, atol=0)
    assert relative_error(grads(method, "critic"), reference.critic_grad) < 5e-6
    assert float(losses["critic_loss"].metrics["rollout/exit_step"]) == pytest.approx(reference.exit_step)
    return reference.exit_step


@pytest.mark.parametrize("iteration", [4, 5], ids=["critic-only", "student-due"])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("rollout_mode", ["simulate", "data_latent"])
@pytest.mark.parametrize(("convention", "scale", "standard"), [("offset", 3.5, 4.5), ("standard", 3.5, 3.5)])
def test_step_equals_reference(convention, scale, standard, rollout_mode, batch_size, iteration):
    config = DMD2Config(
        dmd_denoising_steps=LADDER,
        rollout_mode=rollout_mode,
        guidance_convention=convention,
        real_score_guidance_scale=scale,
    )
    compare(config, standard, batch_size=batch_size, iteration=iteration)


def test_every_exit_step_equals_reference():
    config = DMD2Config(dmd_denoising_steps=LADDER, generator_update_interval=1)
    exits = [compare(config, 4.0, batch_size=2, iteration=iteration) for iteration in range(1, 13)]
    assert set(exits) == {0, 1, 2, 3}


@pytest.mark.parametrize("rollout_mode", ["simulate", "data_latent"])
def test_warped_ladder_with_trailing_zero_equals_reference(rollout_mode):
    config = DMD2Config(
        dmd_denoising_steps=(*LADDER, 0), warp_denoising_step=True, rollout_mode=rollout_mode, generator_update_interval=1
    )
    for iteration in range(1, 6):
        compare(config, 4.0, batch_size=2, iteration=iteration)


def test_zero_conditioning_equals_reference():
    config = DMD2Config(dmd_denoising_steps=LADDER, cfg_uncond={"text": "zero"}, generator_update_interval=1)
    compare(config, 4.0, batch_size=3, iteration=1)


@pytest.mark.parametrize(("convention", "scale"), [("offset", 0.0), ("standard", 1.0)])
def test_no_guidance_equals_reference(convention, scale):
    config = DMD2Config(
        dmd_denoising_steps=LADDER,
        guidance_convention=convention,
        real_score_guidance_scale=scale,
        generator_update_interval=1,
    )
    compare(config, 1.0, batch_size=3, iteration=1)


def test_timestep_range_equals_reference():
    config = DMD2Config(dmd_denoising_steps=LADDER, generator_update_interval=1, min_timestep_ratio=0.4, max_timestep_ratio=0.6)
    compare(config, 4.0, batch_size=3, iteration=1)
