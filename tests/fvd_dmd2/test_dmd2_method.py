"""The step around the losses: cadence, forwards, timesteps, isolation of roles and samples."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from small_video import SmallVideoAdapter, small_raw_batch, small_roles, small_run
from torch import Tensor

import fvd
from fvd.config.optimization import OptimizerConfig
from fvd.testing.steps import step_random, train_step
from fvd.timesteps import unshifted
from fvd_dmd2.config import DMD2Config
from fvd_dmd2.method import DMD2Method

LADDER = (1000, 750, 500, 250)
ROLES = {"student": True, "teacher": False, "critic": True}


def build(adapter: fvd.Adapter | None = None, *, flow_shift: float = 3.0, training=None, critic=None, **config) -> DMD2Method:
    """``critic``: its optimizer, as under ``roles:``."""
    roles = small_roles(ROLES)
    run = small_run(
        roles,
        DMD2Config(**{"dmd_denoising_steps": LADDER} | config),
        method="dmd2",
        flow_shift=flow_shift,
        training={"learning_rate": 1e-2, "weight_decay": 0.0} | (training or {}),
    )
    if critic:
        optimizer = OptimizerConfig.model_validate(critic)
        run = run.model_copy(
            update={"roles": run.roles | {"critic": run.roles["critic"].model_copy(update={"optimizer": optimizer})}}
        )
    method = DMD2Method.build(run=run, roles=roles, adapter=adapter or SmallVideoAdapter(flow_shift=flow_shift))
    method.on_train_start()
    return method


def network(method: DMD2Method, role: str) -> torch.nn.Module:
    return method.roles[role].modules["transformer"]


def weights(method: DMD2Method, role: str) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in network(method, role).parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def count_forwards(method: DMD2Method) -> Counter[tuple[str, bool]]:
    """(role, grad mode) -> number of forwards."""
    calls: Counter[tuple[str, bool]] = Counter()
    for handle in method.roles:
        handle.modules["transformer"].register_forward_pre_hook(
            lambda module, args, name=handle.name: calls.update([(name, torch.is_grad_enabled())])
        )
    return calls


# --- cadence ---------------------------------------------------------------------------------------------------------
def test_critic_moves_every_step_student_when_due_teacher_never():
    method = build(generator_update_interval=3)
    teacher = weights(method, "teacher")
    for iteration in range(1, 8):
        student, critic = weights(method, "student"), weights(method, "critic")
        train_step(method, small_raw_batch(2), iteration)
        assert same(student, weights(method, "student")) == (iteration % 3 != 0)
        assert not same(critic, weights(method, "critic"))
    assert same(teacher, weights(method, "teacher"))
    assert all(parameter.grad is None for parameter in network(method, "teacher").parameters())


@pytest.mark.parametrize(("interval", "student_steps"), [(1, 20), (5, 4), (7, 2)])
def test_roles_due(interval, student_steps):
    method = build(generator_update_interval=interval)
    due = [role for iteration in range(1, 21) for role in method.roles_to_update(iteration)]
    assert Counter(due) == {"critic": 20, "student": student_steps}
    assert method.count_role_steps(20) == {"critic": 20, "student": student_steps}
    assert method.roles_to_update(interval) == ["student", "critic"]


def test_learning_rates_tick_in_each_roles_own_steps():
    method = build(
        generator_update_interval=2,
        training={"max_train_steps": 8, "lr_scheduler": "linear", "learning_rate": 1.0},
        critic={"learning_rate": 0.5},
    )
    for iteration in range(1, 5):
        train_step(method, small_raw_batch(1), iteration)
    rates = {role: method.roles[role].lr_schedulers["main"].get_last_lr()[0] for role in ("student", "critic")}
    assert rates == {"student": pytest.approx(0.5), "critic": pytest.approx(0.25)}  # both are half-way down


def test_optimizers_follow_the_run_file():
    training = {"learning_rate": 2e-6, "betas": "0.0,0.999", "weight_decay": 0.1, "lr_scheduler": "cosine"}
    specs = build(training=training).optimizer_specs()
    assert specs["critic"] == specs["student"]
    student = specs["student"]
    assert (student.learning_rate, student.betas, student.weight_decay) == (2e-6, (0.0, 0.999), 0.1)
    method = build(training=training, critic={"learning_rate": 0.0, "betas": "0.5,0.9", "lr_scheduler": "constant"})
    critic = method.optimizer_specs()["critic"]
    assert (critic.learning_rate, critic.betas, critic.lr_scheduler, critic.weight_decay) == (0.0, (0.5, 0.9), "constant", 0.1)
    assert method.roles["critic"].optimizers["main"].param_groups[0]["betas"] == (0.5, 0.9)
    assert "main" not in method.roles["teacher"].optimizers


# --- forwards --------------------------------------------------------------------------------------------------------
def test_forwards_of_a_step():
    """One early-exit rollout serves both losses; only the student's last forward and the critic's own carry gradient."""
    method = build(generator_update_interval=2)
    for iteration in range(1, 9):
        calls = count_forwards(method)
        exit_step = train_step(method, small_raw_batch(2), iteration)["rollout/exit_step"]
        due = iteration % 2 == 0
        want = {("student", False): exit_step + (not due), ("critic", True): 1}
        if due:
            want |= {("student", True): 1, ("teacher", False): 1, ("critic", False): 1}  # the teacher's of twice the samples
        assert +calls == {call: count for call, count in want.items() if count}
        for handle in method.roles:
            handle.modules["transformer"]._forward_pre_hooks.clear()


@pytest.mark.parametrize(
    "config",
    [
        {"real_score_guidance_scale": 0.0},
        {"real_score_guidance_scale": 1.0, "guidance_convention": "standard"},
        {"cfg_uncond": {"text": "keep"}},
    ],
)
def test_without_guidance_there_is_no_unconditional_forward(config):
    adapter = SmallVideoAdapter()
    adapter.ensure_negative_conditioning = lambda: pytest.fail("negative conditioning was asked for")
    method = build(adapter, generator_update_interval=1, **config)
    calls = count_forwards(method)
    train_step(method, small_raw_batch(2), 1)
    assert calls["teacher", False] == 1


def test_zero_conditioning_needs_no_negative_prompt():
    adapter = SmallVideoAdapter()
    adapter.ensure_negative_conditioning = lambda: pytest.fail("negative conditioning was asked for")
    method = build(adapter, generator_update_interval=1, cfg_uncond={"text": "zero"})
    calls = count_forwards(method)
    train_step(method, small_raw_batch(2), 1)
    assert calls["teacher", False] == 1  # of twice the samples


def test_missing_negative_conditioning_is_an_error_not_a_silent_pass():
    adapter = SmallVideoAdapter()
    adapter.ensure_negative_conditioning = lambda: None
    method = build(adapter, generator_update_interval=1)
    with pytest.raises(fvd.FvdError, match="no unconditional conditioning"):
        train_step(method, small_raw_batch(2), 1)


class RecordingAdapter(SmallVideoAdapter):
    attn_kinds = frozenset({"dense", "vsa"})

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, str]] = set()

    def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
        self.seen.add((handle.name, attn_kind))
        return super().predict(handle, x_t, t, cond, attn_kind=attn_kind)


def test_attn_kind_reaches_the_student_only():
    adapter = RecordingAdapter()
    method = build(adapter, generator_update_interval=1, attn_kind="vsa")
    train_step(method, small_raw_batch(1), 1)
    assert adapter.seen == {("student", "vsa"), ("teacher", "dense"), ("critic", "dense")}
    assert build(attn_kind="vsa").student_attn_kind == "dense"  # the adapter has no vsa


@pytest.mark.parametrize(("mode", "source"), [("simulate", "zeros"), ("data_latent", "data")])
def test_simulate_trains_on_text_alone(mode, source):
    method = build(rollout_mode=mode)
    assert method.latents_source(method.run) == source
    if mode == "simulate":
        assert train_step(method, small_raw_batch(2, latents=False), 5).keys() >= {"student_loss", "critic_loss"}


def test_data_latent_picks_a_step_for_each_sample():
    method = build(rollout_mode="data_latent")
    seen = set()
    original = method.adapter.predict_x0

    def predict_x0(handle, x_t, t, cond, *, attn_kind="dense"):
        seen.add(tuple(t.tolist()))
        return original(handle, x_t, t, cond, attn_kind=attn_kind)

    method.adapter.predict_x0 = predict_x0
    for iteration in range(1, 5):
        train_step(method, small_raw_batch(4), iteration)
    assert {t for ts in seen for t in ts} == set(LADDER)
    assert any(len(set(ts)) > 1 for ts in seen)


# --- samples and randomness ------------------------------------------------------------------------------------------
def gradients_at(method: DMD2Method, raw: fvd.RawBatch, *, first_position: int) -> dict[str, list[Tensor]]:
    rng = step_random(5, raw.batch_size, first_position=first_position)
    for loss in method.single_train_step(raw, 5, rng=rng):
        loss.value.backward()
    result = {}
    for handle in method.roles.trainable:
        result[handle.name] = [parameter.grad.clone() for parameter in handle.trainable_parameters()]
        handle.modules["transformer"].zero_grad()
    return result


def sample(raw: fvd.RawBatch, index: int) -> fvd.RawBatch:
    part = slice(index, index + 1)
    return fvd.RawBatch({name: value[part] for name, value in raw.tensors.items()}, raw.dropped[part], raw.info[part])


@pytest.mark.parametrize("rollout_mode", ["simulate", "data_latent"])
def test_a_batch_is_the_mean_of_its_samples(rollout_mode):
    """No sample's gradient depends on what else is in the batch, nor do its draws."""
    method, raw = build(rollout_mode=rollout_mode), small_raw_batch(3)
    together = gradients_at(method, raw, first_position=0)
    alone = [gradients_at(method, sample(raw, index), first_position=index) for index in range(3)]
    for role in ("student", "critic"):
        for position, gradient in enumerate(together[role]):
            mean = torch.stack([single[role][position] for single in alone]).mean(dim=0)
            torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-6)


def test_steps_are_functions_of_the_seed():
    first, second = build(), build()
    for iteration in (4, 5):
        assert train_step(first, small_raw_batch(2), iteration) == train_step(second, small_raw_batch(2), iteration)
    assert same(weights(first, "student"), weights(second, "student"))


def test_non_finite_teacher_sample_is_dropped_and_counted():
    method, raw = build(), small_raw_batch(3)
    clean = gradients_at(method, raw, first_position=0)
    original = method.adapter.predict_x0

    def broken(handle, x_t, t, cond, *, attn_kind="dense"):
        x0 = original(handle, x_t, t, cond, attn_kind=attn_kind)
        if handle.name == "teacher":
            x0 = torch.cat([x0[:1], torch.full_like(x0[1:2], torch.nan), x0[2:]])
        return x0

    only_second = gradients_at(method, sample(raw, 1), first_position=1)
    method.adapter.predict_x0 = broken
    dropped = gradients_at(method, raw, first_position=0)
    for with_all, without, part in zip(clean["student"], dropped["student"], only_second["student"], strict=True):
        torch.testing.assert_close(without, with_all - part / 3, rtol=1e-4, atol=1e-6)
    (student, _) = list(method.single_train_step(raw, 5, rng=step_random(5, 3)))
    assert student.counts["dmd2/non_finite_samples"] == 1  # a count: summed over micro-batches, not averaged
    assert "dmd2/non_finite_samples" not in student.metrics
    logged = train_step(method, raw, 5)
    assert logged["dmd2/non_finite_samples"] == 1
    assert all(value == value for value in logged.values())


# --- timesteps -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("low", "high"), [(0.02, 0.98), (0.0, 1.0), (0.3, 0.5)])
@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_score_timesteps_have_no_atom(shift, low, high):
    """Kolmogorov-Smirnov distance to the shifted uniform law conditioned on [low, high]."""
    count = 4000
    method = build(flow_shift=shift, min_timestep_ratio=low, max_timestep_ratio=high)
    t = method.score_timesteps.sample(step_random(1, count)).double().sort().values
    assert low * 1000 <= t[0]
    assert t[-1] <= high * 1000

    def unshifted_cdf(sigma: Tensor | float) -> Tensor | float:  # P(shift(U) <= sigma), U uniform on [0, 1]
        return sigma / (shift + (1 - shift) * sigma)

    cdf = (unshifted_cdf(t / 1000) - unshifted_cdf(low)) / (unshifted_cdf(high) - unshifted_cdf(low))
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    distance = max((cdf - steps[:-1]).abs().max(), (steps[1:] - cdf).abs().max())
    assert distance < 1.63 / count**0.5  # 1 % level; the clamped law of older programs is off by 0.14 at shift 8
    assert (t == t[-1]).sum() < 5


class EvenlySpaced:
    """In the place of the step's randomness: uniforms in order, one for each sample."""

    def rand(self) -> Tensor:
        return (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000


@pytest.mark.parametrize(("low", "high"), [(0.02, 0.98), (0.0, 1.0), (0.4, 0.41)])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 5.0, 8.0])
def test_score_timesteps_are_the_quantiles_of_the_conditioned_law(shift, low, high):
    method = build(flow_shift=shift, min_timestep_ratio=low, max_timestep_ratio=high)
    sigma = method.score_timesteps.sample(EvenlySpaced()).double() / 1000
    assert low - 1e-7 <= sigma.min()
    assert sigma.max() <= high + 1e-7
    assert (sigma.diff() > 0).all()  # no atom at either end

    def cdf(s):
        return s / (shift + (1 - shift) * s)

    torch.testing.assert_close((cdf(sigma) - cdf(low)) / (cdf(high) - cdf(low)), EvenlySpaced().rand(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 8.0, 17.0])
def test_unshifted_is_the_inverse_of_the_shift(shift):
    for timestep in (0.0, 20.0, 500.0, 980.0, 1000.0):
        sigma = timestep / 1000
        expected = 1000 * sigma / (shift - (shift - 1) * sigma)
        assert unshifted(SmallVideoAdapter(flow_shift=shift), timestep) == pytest.approx(expected, abs=5e-3)


class CosineAdapter(SmallVideoAdapter):
    """A schedule with no formula that dmd2 could know."""

    def shift_and_clamp_timestep(self, t, shift=None):
        return 500 * (1 - torch.cos(torch.pi * t / 1000))


def test_the_range_of_score_timesteps_holds_for_any_increasing_schedule():
    assert unshifted(CosineAdapter(), 500) == pytest.approx(500, abs=1e-6)
    method = build(CosineAdapter(), min_timestep_ratio=0.1, max_timestep_ratio=0.6)
    t = method.score_timesteps.sample(EvenlySpaced())
    assert float(t[0]) == pytest.approx(100, abs=0.5)
    assert float(t[-1]) == pytest.approx(600, abs=0.5)
    drawn = torch.acos(1 - t / 500)
    torch.testing.assert_close(drawn.diff(), drawn.diff().mean().expand(999), rtol=1e-3, atol=0)  # uniform there


@pytest.mark.parametrize(
    ("shift", "warped"),
    [(1, LADDER), (3, (1000, 900, 750, 500)), (5, (1000, 937.5, 833.33, 625)), (8, (1000, 960, 888.89, 727.27))],
)
@pytest.mark.parametrize("ending", [(), (0,)])
def test_warped_ladder(shift, warped, ending):
    steps = (*LADDER, *ending)
    warping = build(flow_shift=shift, dmd_denoising_steps=steps, warp_denoising_step=True)
    assert warping.ladder.tolist() == pytest.approx(warped, abs=0.01)
    assert tuple(build(flow_shift=shift, dmd_denoising_steps=steps).ladder.tolist()) == LADDER


@pytest.mark.parametrize(("between", "sampler"), [("sde", "sde"), ("ode", "ddim")])
def test_sampling_plan_is_the_ladder(between, sampler):
    method = build(dmd_denoising_steps=[1000, 750, 500, 250, 0], warp_denoising_step=True, between_steps=between)
    plan = DMD2Method.sampling_plan(method.run)
    assert (plan.role, plan.sampler_kind, plan.sampling_steps, plan.guidance_scale) == ("student", sampler, (4,), 1.0)
    assert (plan.sampling_timesteps, plan.shift_timesteps) == (LADDER, True)
    shifted = method.adapter.shift_and_clamp_timestep(torch.tensor(plan.sampling_timesteps))
    assert torch.equal(shifted, method.ladder)
    request = method.validation_request(0)
    assert request.sample_handle is method.roles["student"]
    assert request.plan == plan


# --- other adapters --------------------------------------------------------------------------------------------------
class NoisePredictingAdapter(SmallVideoAdapter):
    """The same process, with a network that predicts the noise; x0 = (x_t - sigma noise) / (1 - sigma), floored."""

    def training_target(self, x0, noise, t):
        return noise

    def predict_x0(self, handle, x_t, t, cond, *, attn_kind="dense"):
        sigma = self.sigma(t).view(-1, 1, 1, 1, 1)
        return (x_t - sigma * self.predict(handle, x_t, t, cond, attn_kind=attn_kind)) / (1 - sigma).clamp(min=0.02)


def test_critic_regresses_on_the_adapters_own_target():
    method = build(NoisePredictingAdapter())
    raw = small_raw_batch(2)
    [loss] = list(method.single_train_step(raw, 1, rng=step_random(1, 2)))
    # replay: rollout, then t and noise of the critic
    rng = step_random(1, 2)
    batch = method.adapter.prepare_batch(raw, latents_source="zeros")
    x0 = method.roll_out(batch, rng, with_grad=False).x0
    t = method.critic_timesteps.sample(rng)
    noise = rng.randn_like(x0)
    predicted = method.critic.predict(method.adapter.add_noise(x0, noise, t), t, batch.cond)
    assert loss.value == ((predicted - noise) ** 2).mean()


def test_other_timestep_scale_is_refused():
    adapter = SmallVideoAdapter()
    adapter.num_train_timesteps = 4000
    with pytest.raises(fvd.FvdError, match="counts timesteps to 1000"):
        build(adapter)


def test_missing_roles_are_named():
    roles = small_roles({"student": True})
    run = small_run(roles, DMD2Config(dmd_denoising_steps=LADDER))
    with pytest.raises(fvd.FvdError, match="missing roles: teacher, critic"):
        DMD2Method.build(run=run, roles=roles, adapter=SmallVideoAdapter())


def test_equal_teacher_and_critic_give_no_gradient():
    method = build(generator_update_interval=1, real_score_guidance_scale=0.0)
    network(method, "critic").load_state_dict(network(method, "teacher").state_dict())
    logged = train_step(method, small_raw_batch(3), 1)
    assert logged["student_loss"] < 1e-12  # equal weights; kernels may round differently (exact: test_dmd2_gaussian)
    assert logged["dmd2/gradient_rms"] < 1e-6
    assert logged["dmd2/score_gap"] < 1e-6
    assert logged["dmd2/normalizer"] > 0.1
