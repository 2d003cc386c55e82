"""Knobs that make a step cheaper or dearer and leave its mathematics alone, and those that change which forwards are made."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from small_video import SmallVideoAdapter, small_raw_batch, small_roles, small_run
from torch import Tensor

import fvd
from fvd.metrics import StepMetrics
from fvd.testing.steps import step_random, train_step
from fvd_dmd2.config import PRESETS, DMD2Config
from fvd_dmd2.method import DMD2Method

LADDER = (1000, 750, 500, 250)


def build(adapter: fvd.Adapter | None = None, **config) -> DMD2Method:
    roles = small_roles({"student": True, "teacher": False, "critic": True})
    settings = DMD2Config(
        **({"dmd_denoising_steps": LADDER, "generator_update_interval": 1} if "preset" not in config else {}) | config
    )
    run = small_run(roles, settings, method="dmd2", flow_shift=3.0, training={"learning_rate": 1e-2})
    method = DMD2Method.build(run=run, roles=roles, adapter=adapter or SmallVideoAdapter())
    method.on_train_start()
    return method


def gradients(method: DMD2Method, iteration: int = 1, batch_size: int = 3) -> dict[str, list[Tensor]]:
    """Of every loss, of each role."""
    for loss in method.single_train_step(small_raw_batch(batch_size), iteration, rng=step_random(iteration, batch_size)):
        loss.value.backward()
    return {
        handle.name: [parameter.grad.clone() for parameter in handle.trainable_parameters() if parameter.grad is not None]
        for handle in method.roles.trainable
    }


def assert_same(first, second, *, rtol=1e-5, atol=1e-7):
    torch.testing.assert_close(first, second, rtol=rtol, atol=atol)


def network_calls(method: DMD2Method) -> Counter[tuple[str, bool, int]]:
    """(role, grad mode, samples) -> forwards."""
    calls: Counter[tuple[str, bool, int]] = Counter()
    for handle in method.roles:
        handle.modules["transformer"].register_forward_pre_hook(
            lambda module, args, name=handle.name: calls.update([(name, torch.is_grad_enabled(), len(args[0]))])
        )
    return calls


# --- cheaper, and the same -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("between", ["sde", "ode"])
@pytest.mark.parametrize("step_choice", ["batch", "sample"])
def test_early_exit_changes_no_gradient(step_choice, between):
    for iteration in range(1, 6):
        early, whole = (
            gradients(build(between_steps=between, step_choice=step_choice, early_exit=flag), iteration)
            for flag in (True, False)
        )
        assert_same(early, whole)


@pytest.mark.parametrize("step_choice", ["batch", "sample"])
def test_no_draw_and_no_metric_depends_on_the_size_of_a_micro_batch(step_choice):
    """The means over four micro-batches of one sample are those of one of four."""
    raw = small_raw_batch(4)
    for iteration in range(1, 4):
        together, parts = StepMetrics(), StepMetrics()
        for first, size, metrics in [(0, 4, together), *((index, 1, parts) for index in range(4))]:
            part = slice(first, first + size)
            batch = fvd.RawBatch({name: value[part] for name, value in raw.tensors.items()}, raw.dropped[part], raw.info[part])
            rng = step_random(iteration, size, first_position=first)
            for loss in build(step_choice=step_choice).single_train_step(batch, iteration, rng=rng):
                metrics.mean(loss.name, loss.value.detach())
                for name, value in loss.metrics.items():
                    metrics.mean(name, value)
        expected = together.to_host()
        assert parts.to_host() == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert {"dmd2/student_x0_std", "dmd2/gradient_norm", "rollout/x0_std"} <= expected.keys()


def test_early_exit_saves_the_forwards_behind_it():
    early, whole = (build(early_exit=flag) for flag in (True, False))
    spent = {}
    for name, method in (("early", early), ("whole", whole)):
        calls = network_calls(method)
        exits = [train_step(method, small_raw_batch(2), iteration)["rollout/exit_step"] for iteration in range(1, 9)]
        spent[name] = calls["student", False, 2]
        assert spent[name] == (sum(exits) if name == "early" else 8 * 3)
    assert spent["early"] < spent["whole"]


def test_both_graphs_at_once_give_the_same_gradients_and_hold_both():
    apart, together = (gradients(build(separate_graphs=flag)) for flag in (True, False))
    assert_same(apart, together, rtol=0, atol=0)

    def alive(separate: bool) -> list[str]:
        """Whose graphs exist when the first loss is handed over."""
        method = build(separate_graphs=separate)
        seen = []
        handle = (
            method.roles["critic"]
            .modules["transformer"]
            .register_forward_hook(lambda module, args, output: seen.append("critic") if output.requires_grad else None)
        )
        next(method.single_train_step(small_raw_batch(2), 1, rng=step_random(1, 2)))
        handle.remove()
        return seen

    assert alive(True) == []
    assert alive(False) == ["critic"]


def test_guidance_in_one_forward_is_guidance_in_two():
    one, two = build(batch_guidance=True), build(batch_guidance=False)
    assert_same(gradients(one), gradients(two), rtol=1e-4, atol=1e-6)
    calls = [network_calls(method) for method in (one, two)]
    for method in (one, two):
        train_step(method, small_raw_batch(2), 1)
    assert calls[0]["teacher", False, 4] == 1
    assert calls[1]["teacher", False, 2] == 2


def test_where_memory_runs_out_guidance_makes_two_forwards_from_then_on(caplog):
    adapter = SmallVideoAdapter()
    method, expected = build(adapter), gradients(build(batch_guidance=False))
    predict_x0 = adapter.predict_x0

    def little_memory(handle, x_t, t, cond, *, attn_kind="dense"):
        if handle.name == "teacher" and len(x_t) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return predict_x0(handle, x_t, t, cond, attn_kind=attn_kind)

    adapter.predict_x0 = little_memory
    assert_same(gradients(method), expected)
    calls = network_calls(method)
    train_step(method, small_raw_batch(3), 2)
    assert calls["teacher", False, 3] == 2
    assert caplog.text.count("too little memory for the teacher's guidance") == 1


def test_an_adapter_that_cannot_join_conditioning_makes_two_forwards():
    class Apart(SmallVideoAdapter):
        joins_conditioning = False

    method = build(Apart())
    calls = network_calls(method)
    train_step(method, small_raw_batch(2), 1)
    assert calls["teacher", False, 2] == 2


@pytest.mark.parametrize("unit", [{"real_score_guidance_scale": 0.0}, {"cfg_uncond": {"text": "keep"}}])
def test_an_unused_unconditional_forward_can_be_made_all_the_same(unit):
    skipping, making = build(**unit), build(skip_unused_uncond=False, batch_guidance=False, **unit)
    assert_same(gradients(skipping), gradients(making), rtol=1e-4, atol=1e-6)
    calls = network_calls(making)
    train_step(making, small_raw_batch(2), 1)
    assert calls["teacher", False, 2] == 2


def test_a_reused_rollout_has_the_law_of_a_fresh_one():
    """The critic's loss on the student's own samples, over many steps: equal means, within four standard errors."""
    means = []
    for reuse in (True, False):
        method = build(reuse_rollout=reuse)
        values = []
        for iteration in range(1, 61):
            *_, critic = method.single_train_step(small_raw_batch(8), iteration, rng=step_random(iteration, 8))
            values.append(critic.value.detach())
        means.append((torch.stack(values).mean(), torch.stack(values).var() / len(values)))
    (first, first_variance), (second, second_variance) = means
    assert abs(first - second) < 4 * (first_variance + second_variance).sqrt()


def test_a_fresh_rollout_is_made_only_where_both_move():
    method = build(reuse_rollout=False, generator_update_interval=2, dmd_denoising_steps=[1000])
    for iteration, forwards in ((1, {("student", False, 2): 1}), (2, {("student", True, 2): 1, ("student", False, 2): 1})):
        calls = network_calls(method)
        train_step(method, small_raw_batch(2), iteration)
        assert {call: count for call, count in calls.items() if call[0] == "student"} == forwards
        for handle in method.roles:
            handle.modules["transformer"]._forward_pre_hooks.clear()


# --- which forwards --------------------------------------------------------------------------------------------------
def test_either_or_moves_one_role_at_a_time():
    method = build(update_mode="either_or", generator_update_interval=5)
    due = [role for iteration in range(1, 21) for role in method.roles_to_update(iteration)]
    assert Counter(due) == {"critic": 16, "student": 4}
    assert list(gradients(method, 5)["critic"]) == []
    assert list(gradients(build(update_mode="either_or", generator_update_interval=5), 4)["student"]) == []


@pytest.mark.parametrize("rollout_mode", ["simulate", "data_latent"])
@pytest.mark.parametrize(("choice", "together"), [("batch", True), ("sample", False)])
def test_a_step_is_chosen_for_all_or_for_each(rollout_mode, choice, together):
    method = build(rollout_mode=rollout_mode, step_choice=choice)
    chosen = [method.choose_exit_steps(step_random(iteration, 8)) for iteration in range(1, 30)]
    assert all(len(set(steps)) == 1 for steps in chosen) == together
    assert {step for steps in chosen for step in steps} == {0, 1, 2, 3}


def test_a_score_timestep_is_drawn_for_all_or_for_each():
    alone, shared = (build(score_timestep_choice=choice).score_timesteps for choice in ("sample", "batch"))
    assert len(set(alone.sample(step_random(1, 8)).tolist())) == 8
    assert len(set(shared.sample(step_random(1, 8)).tolist())) == 1
    assert shared.sample(step_random(1, 8))[0] != shared.sample(step_random(2, 8))[0]


def test_score_timesteps_may_be_shifted_by_another_factor_than_the_ladder():
    samples = {
        shift: build(score_timestep_shift=shift).score_timesteps.sample(step_random(1, 4000)) for shift in (None, 3.0, 1.0, 8.0)
    }
    assert torch.equal(samples[None], samples[3.0])  # the run's flow_shift
    medians = {shift: float(t.median()) for shift, t in samples.items()}
    for shift in (1.0, 3.0, 8.0):

        def cdf(sigma, s=shift):
            return sigma / (s + (1 - s) * sigma)

        middle = (cdf(0.02) + cdf(0.98)) / 2
        assert medians[shift] == pytest.approx(1000 * shift * middle / (1 + (shift - 1) * middle), abs=15)


@pytest.mark.parametrize("draw", ["integer", "continuous"])
def test_integers_before_the_shift(draw):
    config = {"score_timestep_draw": draw, "score_timestep_shift": 1.0}
    t = build(**config).score_timesteps.sample(step_random(1, 2000))
    assert bool((t - t.round()).abs().max() < 1e-3) == (draw == "integer")
    assert (t.min() >= 20) & (t.max() <= 980)
    clamped = build(score_timestep_range="clamp", **config).score_timesteps.sample(step_random(1, 20000))
    assert (clamped == 980).float().mean() == pytest.approx(0.02, abs=0.004)  # what lay above it


@pytest.mark.parametrize(("scope", "lowest", "highest"), [("full", 0, 1000), ("score", 400, 600)])
def test_range_of_the_critic(scope, lowest, highest):
    method = build(critic_timestep_range=scope, min_timestep_ratio=0.4, max_timestep_ratio=0.6)
    t = method.critic_timesteps.sample(step_random(1, 4000))
    assert lowest <= t.min() < lowest + 20
    assert highest - 20 < t.max() <= highest


def test_x0_target_of_the_critic_is_sigma_squared_times_its_native_error():
    """For flow matching x0 - predicted x0 = sigma (velocity - predicted velocity), so the gradients differ by sigma^2."""
    losses = {}
    for target in ("native", "x0"):
        method = build(critic_target=target)
        *_, loss = method.single_train_step(small_raw_batch(1), 1, rng=step_random(1, 1))
        losses[target] = float(loss.value.detach()), float(loss.metrics["critic/sigma"])
    assert losses["x0"][1] == losses["native"][1]
    assert losses["x0"][0] == pytest.approx(losses["native"][1] ** 2 * losses["native"][0], rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"generator_update_interval": 5},
        {"early_exit": False, "reuse_rollout": False, "generator_update_interval": 5},
        {"update_mode": "either_or", "generator_update_interval": 4},
        {"rollout_mode": "data_latent", "generator_update_interval": 2},
        {"real_score_guidance_scale": 0.0},
        {"step_choice": "sample", "generator_update_interval": 2},
        *({"preset": name} for name in PRESETS),
    ],
    ids=str,
)
def test_expected_passes_are_those_that_are_counted(settings):
    """Over twenty cycles, and every exit step as often as its law says: within four standard errors."""
    method = build(**settings)
    interval, batch = method.config.generator_update_interval, 2
    steps = 20 * interval
    forwards: Counter[str] = Counter()
    backwards: Counter[str] = Counter()
    squares: Counter[str] = Counter()
    for iteration in range(1, steps + 1):
        calls = network_calls(method)
        for _ in method.single_train_step(small_raw_batch(batch), iteration, rng=step_random(iteration, batch)):
            pass
        of_step: Counter[str] = Counter()
        for (role, with_grad, samples), count in calls.items():
            of_step[role] += count * samples / batch
            backwards[role] += count * samples / batch if with_grad else 0
        for role, count in of_step.items():
            forwards[role] += count
            squares[role] += count**2
        for handle in method.roles:
            handle.modules["transformer"]._forward_pre_hooks.clear()
    for role, expected in method.config.expected_passes(
        method.run.model_copy(update={"training": batched(method, batch)})
    ).items():
        mean = forwards[role] / steps
        spread = max(0.0, squares[role] / steps - mean**2) ** 0.5 / steps**0.5
        tolerance = 4 * spread if role == "student" else 1e-9
        assert mean == pytest.approx(expected.forwards, abs=tolerance)
        assert backwards[role] / steps == pytest.approx(expected.backwards)


def batched(method: DMD2Method, batch_size: int) -> fvd.TrainingConfig:
    return method.run.training.model_copy(update={"train_batch_size": batch_size})
