"""Rollouts of a few-step student as functions, against loops written out here."""

from __future__ import annotations

import pytest
import torch

from fvd.flow import add_noise as flow_add_noise
from fvd.rollouts import implied_noise, max_over_ranks, next_x_t, simulate
from fvd.testing.toy.workbench import toy_family

SHAPE = (4, 2, 1, 3, 3)
LADDER = torch.tensor([1000.0, 750.0, 500.0, 250.0])


def flow(x0, noise, t):
    return flow_add_noise(x0, noise, t / 1000)


def predict(x_t, t):
    """Any function of both that mixes nothing between samples."""
    return torch.tanh(x_t + t.view(-1, 1, 1, 1, 1) / 1000)


def draws(seed: int = 0):
    """Noise of each sample from a stream of its own; a sample that does not draw gets zeros."""
    generators = [torch.Generator().manual_seed(100 * seed + sample) for sample in range(SHAPE[0])]

    def draw(drawing=(True,) * SHAPE[0]):
        pairs = zip(generators, drawing, strict=True)
        return torch.stack([torch.randn(SHAPE[1:], generator=g) if wanted else torch.zeros(SHAPE[1:]) for g, wanted in pairs])

    return draw


def written_out(noise, exit_step, fresh, between):
    """x_t at one exit step for all, in float64."""
    x_t = noise.double()
    sigmas = (LADDER / 1000).double()
    for step in range(exit_step):
        sigma, after = sigmas[step], sigmas[step + 1]
        x0 = predict(x_t, torch.full((len(noise),), float(LADDER[step]), dtype=torch.float64))
        used = fresh().double() if between == "sde" else (x_t - (1 - sigma) * x0) / sigma
        x_t = (1 - after) * x0 + after * used
    return x_t


@pytest.mark.parametrize("between", ["sde", "ode"])
@pytest.mark.parametrize("exit_step", range(4))
def test_simulation_is_the_sampling_loop_up_to_the_exit(exit_step, between):
    noise = draws(7)()
    got = simulate(predict, flow, LADDER, noise, [exit_step] * 4, between=between, fresh_noise=draws())
    torch.testing.assert_close(got.double(), written_out(noise, exit_step, draws(), between), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("between", ["sde", "ode"])
def test_each_sample_may_have_an_exit_of_its_own(between):
    noise, exits = draws(7)(), [2, 0, 3, 1]
    got = simulate(predict, flow, LADDER, noise, exits, between=between, fresh_noise=draws())
    for sample, exit_step in enumerate(exits):
        alone = simulate(predict, flow, LADDER, noise, [exit_step] * 4, between=between, fresh_noise=draws())
        assert torch.equal(got[sample], alone[sample])


def test_going_on_after_the_exit_changes_nothing_but_the_work():
    noise, calls = draws(7)(), []

    def counted(x_t, t):
        calls.append(float(t[0]))
        return predict(x_t, t)

    arguments = {"between": "sde", "fresh_noise": draws()}
    early = simulate(counted, flow, LADDER, noise, [1, 1, 0, 1], **arguments)
    assert calls == [1000.0]
    calls.clear()
    whole = simulate(counted, flow, LADDER, noise, [1, 1, 0, 1], between="sde", fresh_noise=draws(), early_exit=False)
    assert calls == [1000.0, 750.0, 500.0]
    assert torch.equal(early, whole)


def test_nothing_of_a_simulation_carries_gradient():
    weight = torch.ones((), requires_grad=True)
    x_t = simulate(lambda x_t, t: weight * x_t, flow, LADDER, draws()(), [3] * 4, between="ode", fresh_noise=draws())
    assert not x_t.requires_grad


@pytest.mark.parametrize("predicts", ["velocity", "noise"])
def test_implied_noise_is_what_the_sample_was_noised_with_on_any_schedule(predicts):
    family = toy_family(predicts)
    adapter = family.build_adapter([])
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(5, 2, 1, 1, 1, generator=generator) for _ in range(2))
    t = torch.tensor([999.0, 750.0, 500.0, 250.0, 100.0])
    found = implied_noise(adapter.add_noise, adapter.add_noise(x0, noise, t), x0, t)
    torch.testing.assert_close(found, noise, rtol=1e-4, atol=1e-4)


def test_an_ode_step_of_flow_matching_is_eulers():
    x_t, velocity = draws(1)(), draws(2)()
    t, after = torch.full((4,), 750.0), torch.full((4,), 500.0)
    x0 = x_t - 0.75 * velocity
    stepped = next_x_t("ode", flow, x_t, x0, t, after, draws(3))
    torch.testing.assert_close(stepped, x_t - 0.25 * velocity, rtol=1e-5, atol=1e-5)


def test_one_process_is_its_own_maximum():
    assert max_over_ranks(3) == 3
