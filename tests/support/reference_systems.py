"""What one step of the published DMD2 systems computes, written from their formulas. For tests.

Networks run in float32, as the method's do; everything between them is float64. Nothing here comes from `fvd.flow`,
`fvd.diffusion`, `fvd.losses`, `fvd.timesteps`, `fvd.rollouts` or `fvd_dmd2`. A system is a list of conventions, each a
function, so that a test can put one system's convention into another.

x: the student's sample. R, F: x0 of the guided teacher and of the critic at x_t. u: a uniform draw of [0, 1). Timesteps count
to 1000.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fvd import StepRandom

Role = Literal["student", "teacher", "critic"]


def wide(per_sample: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1, 1]."""
    return per_sample[:, None, None, None, None]


# --- parametrisations ---
class FlowMatching:
    """x_t = (1 - t) x0 + t noise with t of [0, 1]; networks give noise - x0."""

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return x0 + wide(t / 1000) * (noise - x0)

    def x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t - wide(t / 1000) * output

    def target(self, x0: Tensor, noise: Tensor) -> Tensor:
        return noise - x0


class NoisePrediction:
    """x_t = sqrt(a) x0 + sqrt(1 - a) noise with a = alphas_cumprod[t] at whole t; networks give the noise."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self.signal = alphas_cumprod.double()

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        signal = wide(self.signal[t.long()])
        return signal.sqrt() * x0 + (1 - signal).sqrt() * noise

    def x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        signal = wide(self.signal[t.long()])
        return (x_t - (1 - signal).sqrt() * output) / signal.sqrt()

    def target(self, x0: Tensor, noise: Tensor) -> Tensor:
        return noise


@dataclass(frozen=True)
class Text:
    embeddings: Tensor
    mask: Tensor

    def zeros(self) -> Text:
        return Text(torch.zeros_like(self.embeddings), self.mask)


class Setting:
    """Networks ``network(x_t, t / 1000, embeddings, mask)``, one micro-batch of data, and what the networks predict."""

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        data: Tensor,
        text: Text,
        negative: Text,
        parametrisation: FlowMatching | NoisePrediction,
        flow_shift: float,
    ) -> None:
        self.networks = {role: copy.deepcopy(network) for role, network in networks.items()}
        self.data, self.text, self.negative = data.double(), text, negative
        self.space, self.flow_shift = parametrisation, flow_shift

    def output(self, role: Role, x_t: Tensor, t: Tensor, text: Text | None = None) -> Tensor:
        text = text or self.text
        output: Tensor = self.networks[role](x_t.float(), t.float() / 1000, text.embeddings, text.mask)
        return output.double()

    def x0(self, role: Role, x_t: Tensor, t: Tensor, text: Text | None = None) -> Tensor:
        return self.space.x0(self.output(role, x_t, t, text), x_t, t)


class Replay:
    """The draws of a step, taken again one by one: of each sample its own stream, and one of the step."""

    def __init__(self, rng: StepRandom, latent_shape: Sequence[int]) -> None:
        self.rng, self.shape = rng, tuple(latent_shape)

    def normal(self, drawing: Tensor | None = None) -> Tensor:
        """Zeros for samples that do not draw."""
        who = [True] * len(self.rng.per_sample) if drawing is None else drawing.tolist()
        draws = zip(self.rng.per_sample, who, strict=True)
        return torch.stack(
            [torch.randn(self.shape, generator=g) if draw else torch.zeros(self.shape) for g, draw in draws]
        ).double()

    def uniform(self) -> Tensor:
        return torch.stack([torch.rand((), generator=g) for g in self.rng.per_sample]).double()

    def uniform_of_step(self) -> Tensor:
        return torch.rand((), generator=self.rng.shared).double().expand(len(self.rng.per_sample))

    def index(self, count: int) -> Tensor:
        return torch.stack([torch.randint(count, (), generator=g) for g in self.rng.per_sample])

    def index_of_step(self, count: int) -> Tensor:
        return torch.randint(count, (), generator=self.rng.shared).expand(len(self.rng.per_sample))


# --- timesteps ---
def shifted(t: Tensor, shift: float) -> Tensor:
    u = t / 1000
    return 1000 * shift * u / (1 + (shift - 1) * u)


def whole_0_to_999(u: Tensor) -> Tensor:
    return (1000 * u).floor()


Timesteps = Callable[[Setting, Replay], Tensor]


def official_score(setting: Setting, draw: Replay) -> Tensor:
    """Whole numbers of [20, 980], both ends included."""
    return 20 + (961 * draw.uniform()).floor()


def official_critic(setting: Setting, draw: Replay) -> Tensor:
    return whole_0_to_999(draw.uniform())


def shifted_and_clamped(shift: float) -> Timesteps:
    """CausVid, Self-Forcing: whole numbers, shifted, then clamped to [20, 980]."""
    return lambda setting, draw: shifted(whole_0_to_999(draw.uniform()), shift).clamp(20, 980)


CAUSVID_T, SELF_FORCING_T = shifted_and_clamped(8.0), shifted_and_clamped(5.0)


def fastgen_t(setting: Setting, draw: Replay) -> Tensor:
    """Real numbers of [1, 999], shifted by 5, then clamped to the same range."""
    return shifted(1 + 998 * draw.uniform(), 5.0).clamp(1, 999)


def fastvideo_t(setting: Setting, draw: Replay) -> Tensor:
    """One whole number for all, shifted by the pipeline's flow shift; the bounds are 0 and 1000."""
    return shifted(whole_0_to_999(draw.uniform_of_step()), setting.flow_shift).clamp(0, 1000)


# --- the student's sample ---
Rollout = Callable[[Setting, Replay], Tensor]


def backward_simulation(
    ladder: Sequence[float], *, exit_of_each_sample: bool, to_the_end: bool, warped: bool = False
) -> Rollout:
    """From noise along the ladder, x0 noised afresh between rungs; gradient through the forward at the exit only."""

    def rollout(setting: Setting, draw: Replay) -> Tensor:
        rungs = torch.tensor(ladder, dtype=torch.float64)
        rungs = shifted(rungs, setting.flow_shift) if warped else rungs
        exits = (draw.index if exit_of_each_sample else draw.index_of_step)(len(rungs))
        inputs = [draw.normal()]
        for rung in range(len(rungs) - 1 if to_the_end else int(exits.max())):
            here, below = rungs[rung].expand(len(exits)), rungs[rung + 1].expand(len(exits))
            with torch.no_grad():
                inputs.append(setting.space.noised(setting.x0("student", inputs[-1], here), draw.normal(exits > rung), below))
        x_t = torch.stack([inputs[int(step)][sample] for sample, step in enumerate(exits)])
        return setting.x0("student", x_t, rungs[exits])

    return rollout


def noised_data(ladder: Sequence[float]) -> Rollout:
    """FastGen: each sample's data noised to a rung of its own."""

    def rollout(setting: Setting, draw: Replay) -> Tensor:
        t = torch.tensor(ladder, dtype=torch.float64)[draw.index(len(ladder))]
        return setting.x0("student", setting.space.noised(setting.data, draw.normal(), t), t)

    return rollout


# --- R ---
Real = Callable[[Setting, Tensor, Tensor], Tensor]


def guided_output(scale: float) -> Real:
    """Official: in the network's own output, from embeddings of zeros."""

    def real(setting: Setting, x_t: Tensor, t: Tensor) -> Tensor:
        cond = setting.output("teacher", x_t, t)
        uncond = setting.output("teacher", x_t, t, setting.text.zeros())
        return setting.space.x0(uncond + scale * (cond - uncond), x_t, t)

    return real


def guided_x0(weight: float) -> Real:
    """The others: in x0, from the negative prompt, ``weight`` times the difference on top of the conditional prediction."""

    def real(setting: Setting, x_t: Tensor, t: Tensor) -> Tensor:
        cond = setting.x0("teacher", x_t, t)
        return cond + weight * (cond - setting.x0("teacher", x_t, t, setting.negative))

    return real


GUIDED_BY_3_5 = guided_x0(3.5)
"""CausVid's 3.5 and FastVideo's 4.5 are one and the same scale in two conventions."""


# --- g = (F - R) / w ---
Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]


def over_each_sample(x: Tensor, fake: Tensor, real: Tensor) -> Tensor:
    return torch.stack([(f - r) / (s - r).abs().mean() for s, f, r in zip(x, fake, real, strict=True)])


def over_each_sample_and_a_little(x: Tensor, fake: Tensor, real: Tensor) -> Tensor:
    return torch.stack([(f - r) / ((s - r).abs().mean() + 1e-6) for s, f, r in zip(x, fake, real, strict=True)])


def over_the_batch(x: Tensor, fake: Tensor, real: Tensor) -> Tensor:
    return (fake - real) / (x - real).abs().mean()


# --- the critic ---
CriticError = Callable[[Setting, Tensor, Tensor, Tensor], Tensor]


def own_output_error(setting: Setting, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    output = setting.output("critic", setting.space.noised(x, noise, t), t)
    return (output - setting.space.target(x, noise)).square().mean()


def x0_error(setting: Setting, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    return (setting.x0("critic", setting.space.noised(x, noise, t), t) - x).square().mean()


@dataclass(frozen=True)
class System:
    rollout: Rollout
    score_timestep: Timesteps
    real: Real
    gradient: Gradient
    critic_timestep: Timesteps
    critic_error: CriticError
    critic_in_student_steps: Literal["learns on the same sample", "learns on a new one", "rests"]


STEPS = (1000, 750, 500, 250)

SYSTEMS: Mapping[str, System] = {
    "dmd2": System(
        backward_simulation((999, 749, 499, 249), exit_of_each_sample=False, to_the_end=False),
        official_score, guided_output(8.0), over_each_sample, official_critic, own_output_error,
        "learns on the same sample",
    ),
    "causvid": System(
        backward_simulation((1000, 757, 522), exit_of_each_sample=True, to_the_end=True),
        CAUSVID_T, GUIDED_BY_3_5, over_each_sample, CAUSVID_T, own_output_error,
        "learns on a new one",
    ),
    "self_forcing": System(
        backward_simulation(STEPS, exit_of_each_sample=False, to_the_end=False, warped=True),
        SELF_FORCING_T, guided_x0(3.0), over_each_sample, SELF_FORCING_T, own_output_error,
        "learns on a new one",
    ),
    "fastgen": System(
        noised_data((999, 937, 833, 624)),
        fastgen_t, guided_x0(4.0), over_each_sample_and_a_little, fastgen_t, x0_error,
        "rests",
    ),
    "fastvideo": System(
        backward_simulation(STEPS, exit_of_each_sample=False, to_the_end=True),
        fastvideo_t, GUIDED_BY_3_5, over_the_batch, fastvideo_t, own_output_error,
        "learns on a new one",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Expected:
    """A loss and its gradient with respect to the parameters of the network that it trains."""

    loss: Tensor
    grad: list[Tensor]


def step(system: System, setting: Setting, draw: Replay, *, student_is_due: bool) -> dict[str, Expected]:
    """Losses by role, in the order in which `fvd_dmd2.method` draws."""
    expected: dict[str, Expected] = {}
    x = system.rollout(setting, draw)
    if student_is_due:
        expected["student"] = _student(system, setting, draw, x)
        if system.critic_in_student_steps == "rests":
            return expected
        if system.critic_in_student_steps == "learns on a new one":
            x = system.rollout(setting, draw)
    x, t = x.detach(), system.critic_timestep(setting, draw)
    expected["critic"] = _expected(setting, "critic", system.critic_error(setting, x, draw.normal(), t))
    return expected


def _student(system: System, setting: Setting, draw: Replay, x: Tensor) -> Expected:
    with torch.no_grad():
        t = system.score_timestep(setting, draw)
        x_t = setting.space.noised(x, draw.normal(), t)
        g = system.gradient(x, setting.x0("critic", x_t, t), system.real(setting, x_t, t))
    return _expected(setting, "student", 0.5 * (x - (x.detach() - g)).square().mean())


def _expected(setting: Setting, role: Role, loss: Tensor) -> Expected:
    return Expected(loss.detach(), list(torch.autograd.grad(loss, list(setting.networks[role].parameters()))))
