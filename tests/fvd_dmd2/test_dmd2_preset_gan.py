"""The adversarial term of the presets `dmd2` and `fastgen` against formulas: whose features, at which noise, whom it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from reference_systems import SYSTEMS, FlowMatching, Replay, Role, Setting, Text
from small_video import (
    LATENT_SHAPE,
    NEGATIVE_PROMPT,
    SmallVideoAdapter,
    SmallVideoConditioning,
    small_network,
    small_raw_batch,
    small_roles,
    small_run,
)
from torch import Tensor, nn
from torch.nn import functional

from fvd import RoleHandle, RoleManager
from fvd.testing.steps import step_random
from fvd_dmd2.config import DMD2Config
from fvd_dmd2.gan import HEADS, build_discriminator
from fvd_dmd2.method import DMD2Method

WIDTH = small_network().out.in_features
BATCH = 3
TOLERANCE = 1e-6

# system -> (weight of the student's term, of the discriminator's, whose hidden states). The critic's are trained by it too.
ADVERSARIAL: dict[str, tuple[float, float, Role]] = {"dmd2": (5e-3, 1e-2, "critic"), "fastgen": (0.03, 1.0, "teacher")}


def hidden(network: nn.Module, x_t: Tensor, t: Tensor, text: Any) -> Tensor:
    """What the last layer of a small network is applied to, [B, D, T, H, W]."""
    seen: list[Tensor] = []
    hook = network.out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network(x_t.float(), t.float() / 1000, text.embeddings, text.mask)
    hook.remove()
    return seen[0].movedim(-1, 1)


class AdapterWithFeatures(SmallVideoAdapter):
    def feature_widths(self, handle: RoleHandle) -> Sequence[int]:
        return [WIDTH]

    def features(
        self, handle: RoleHandle, x_t: Tensor, t: Tensor, cond: SmallVideoConditioning, *, layers: Sequence[int]
    ) -> list[Tensor]:
        assert list(layers) == [0]
        return [hidden(handle.modules["transformer"], x_t, t, cond)]


def ours(name: str, iteration: int) -> tuple[dict[str, Tensor], dict[str, list[Tensor | None]], RoleManager]:
    """Losses by name, and the gradients that every role has after all of them."""
    adapter = AdapterWithFeatures(flow_shift=3.0)
    config = DMD2Config.model_validate({"preset": name})
    roles = small_roles({"student": True, "teacher": False, "critic": True}, seed=7)
    source = adapter.bind(roles[config.gan.feature_source])
    roles = RoleManager([*roles, build_discriminator("discriminator", config.gan, source, seed=0)])
    method = DMD2Method.build(run=small_run(roles, config, method="dmd2", flow_shift=3.0), roles=roles, adapter=adapter)
    method.on_train_start()
    values = {}
    for loss in method.single_train_step(small_raw_batch(BATCH, seed=3), iteration, rng=step_random(iteration, BATCH)):
        loss.value.backward()
        values[loss.name] = loss.value.detach()
    gradients = {handle.name: [p.grad for module in handle.modules.values() for p in module.parameters()] for handle in roles}
    return values, gradients, roles


class Reference:
    """One step of a system with its adversarial term, in the order in which the method draws."""

    def __init__(self, name: str, roles: RoleManager, iteration: int) -> None:
        self.name, self.system = name, SYSTEMS[name]
        raw, negative = small_raw_batch(BATCH, seed=3), SmallVideoAdapter().encode_prompts([NEGATIVE_PROMPT] * BATCH)
        self.setting = Setting(
            {role: roles[role].modules["transformer"] for role in ("student", "teacher", "critic")},
            raw.tensors["vae_latent"],
            Text(raw.tensors["text_embedding"], raw.tensors["text_embedding_mask"]),
            Text(negative.embeddings, negative.mask),
            FlowMatching(),
            3.0,
        )
        self.heads = roles["discriminator"].modules[HEADS]
        self.draw = Replay(step_random(iteration, BATCH), LATENT_SHAPE)
        self.weight_student, self.weight_discriminator, self.source = ADVERSARIAL[name]

    def logits(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        x_t = self.setting.space.noised(x, noise, t)
        logits: Tensor = self.heads([hidden(self.setting.networks[self.source], x_t, t, self.setting.text)])
        return logits.double()

    def own_draw(self) -> tuple[Tensor, Tensor]:
        """Official: any timestep of the schedule."""
        return 1000 * self.draw.uniform(), self.draw.normal()

    def student(self) -> tuple[Tensor, list[Tensor]]:
        setting, draw = self.setting, self.draw
        x = self.system.rollout(setting, draw)
        t, noise = self.system.score_timestep(setting, draw), draw.normal()
        with torch.no_grad():
            x_t = setting.space.noised(x, noise, t)
            g = self.system.gradient(x, setting.x0("critic", x_t, t), self.system.real(setting, x_t, t))
        matching = 0.5 * (x - (x.detach() - g)).square().mean()
        at = self.own_draw() if self.name == "dmd2" else (t, noise)
        loss = matching + self.weight_student * functional.softplus(-self.logits(x, *at)).mean()
        self.x = x.detach()
        return loss.detach(), list(torch.autograd.grad(loss, list(setting.networks["student"].parameters())))

    def observers(self, *, after_student: bool) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """(critic's loss, discriminator's, gradient of the critic, of the heads)."""
        setting, draw = self.setting, self.draw
        x = self.x if after_student else self.system.rollout(setting, draw).detach()
        t, noise = self.system.critic_timestep(setting, draw), draw.normal()
        critic = self.system.critic_error(setting, x, noise, t)
        fake_at = self.own_draw() if self.name == "dmd2" else (t, noise)
        real_at = self.own_draw() if self.name == "dmd2" else (t, noise)
        fake, real = self.logits(x, *fake_at), self.logits(setting.data, *real_at)
        adversarial = self.weight_discriminator * (functional.softplus(fake).mean() + functional.softplus(-real).mean())
        of_critic, of_heads = list(setting.networks["critic"].parameters()), list(self.heads.parameters())
        # The teacher's features lead to no parameter that is trained, so that the sum is right for both systems.
        gradient = torch.autograd.grad(critic + adversarial, [*of_critic, *of_heads])
        return critic.detach(), adversarial.detach(), list(gradient[: len(of_critic)]), list(gradient[len(of_critic) :])


def apart(found: Sequence[Tensor | None], wanted: Sequence[Tensor]) -> float:
    assert all(tensor is not None for tensor in found)
    flat_found, flat_wanted = (torch.cat([t.double().flatten() for t in tensors]) for tensors in (found, wanted))
    return float((flat_found - flat_wanted).norm() / flat_wanted.norm())


@pytest.mark.parametrize("iteration", [4, 5, 10])
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_term_of_a_preset_is_its_systems(name, iteration):
    values, gradients, roles = ours(name, iteration)
    reference = Reference(name, roles, iteration)
    student_is_due = iteration % 5 == 0
    if student_is_due:
        loss, gradient = reference.student()
        assert apart([values.pop("student_loss")], [loss]) < TOLERANCE
        assert apart(gradients["student"], gradient) < TOLERANCE
    if name == "fastgen" and student_is_due:
        assert not values
        return
    critic, adversarial, of_critic, of_heads = reference.observers(after_student=student_is_due)
    assert apart([values["critic_loss"]], [critic]) < TOLERANCE
    assert apart([values["discriminator_loss"]], [adversarial]) < TOLERANCE
    assert apart(gradients["critic"], of_critic) < TOLERANCE
    assert apart(gradients["discriminator"], of_heads) < 2 * TOLERANCE
    assert all(gradient is None for gradient in gradients["teacher"])
