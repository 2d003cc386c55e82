"""Learning-rate schedules against values worked out by hand, and the optimizers built from a spec."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fvd import OptimizerSpec
from fvd.optim import lr_multiplier

SCHEDULES = ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]


def multipliers(total_steps: int, **settings) -> list[float]:
    multiplier = lr_multiplier(OptimizerSpec(learning_rate=1.0, **settings), total_steps)
    return [multiplier(step) for step in range(total_steps + 2)]


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({"lr_scheduler": "constant"}, [1, 1, 1, 1, 1]),
        ({"lr_scheduler": "linear"}, [1, 0.75, 0.5, 0.25, 0]),
        ({"lr_scheduler": "cosine"}, [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0]),
        ({"lr_scheduler": "cosine_with_restarts"}, [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0]),
        ({"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 2}, [1, 0.5, 1, 0.5, 0]),
        ({"lr_scheduler": "polynomial"}, [1, 0.75, 0.5, 0.25, 0]),
        ({"lr_scheduler": "polynomial", "lr_power": 2.0}, [1, 0.5625, 0.25, 0.0625, 0]),
        ({"lr_scheduler": "linear", "min_lr_ratio": 0.2}, [1, 0.8, 0.6, 0.4, 0.2]),
        (
            {"lr_scheduler": "cosine", "min_lr_ratio": 0.5},
            [1, 0.75 + 0.5 * math.sqrt(0.125), 0.75, 0.75 - 0.5 * math.sqrt(0.125), 0.5],
        ),
    ],
)
def test_decay(settings, want):
    got = multipliers(4, **settings)
    assert got[:5] == pytest.approx(want)
    assert got[5] == pytest.approx(want[-1])  # a step too many stays at the end


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_never_wastes_the_first_step_and_reaches_the_top_once(schedule):
    got = multipliers(10, lr_scheduler=schedule, lr_warmup_steps=4)
    assert got[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(value <= 1 for value in got)


def test_decay_spans_the_steps_after_the_warmup():
    assert multipliers(6, lr_scheduler="linear", lr_warmup_steps=2)[2:7] == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_warmup_alone_does_not_decay():
    assert multipliers(5, lr_scheduler="constant_with_warmup", lr_warmup_steps=1) == pytest.approx([0.5, 1, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_more_warmup_than_steps_is_still_a_schedule(schedule):
    got = multipliers(2, lr_scheduler=schedule, lr_warmup_steps=5)
    assert got == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_role_that_never_steps_has_a_schedule(schedule):
    assert lr_multiplier(OptimizerSpec(learning_rate=1.0, lr_scheduler=schedule), 0)(0) == 1


def test_optimizer_carries_the_spec():
    spec = OptimizerSpec(learning_rate=0.1, betas=(0.0, 0.9), weight_decay=0.2, eps=1e-6)
    group = spec.build_optimizer([nn.Parameter(torch.zeros(2))]).param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"], group["eps"]) == (0.1, (0.0, 0.9), 0.2, 1e-6)


def test_optimizer_makes_an_adamw_step():
    """One step by hand: p (1 - lr wd) - lr m / (sqrt(v) + eps) with bias-corrected m = gradient, v = gradient^2."""
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimizer = OptimizerSpec(learning_rate=0.1, weight_decay=0.5).build_optimizer([parameter])
    parameter.grad = torch.tensor([3.0])
    optimizer.step()
    assert parameter.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1 * 3 / (3 + 1e-8))


def test_scheduler_counts_the_roles_own_steps():
    spec = OptimizerSpec(learning_rate=2.0, lr_scheduler="linear", lr_warmup_steps=1)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = spec.build_optimizer([parameter])
    scheduler = spec.build_lr_scheduler(optimizer, 3)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1.0, 2.0, 1.0, 0.0])


def test_scheduler_state_continues():
    spec = OptimizerSpec(learning_rate=1.0, lr_scheduler="cosine", lr_warmup_steps=2)

    def built():
        optimizer = spec.build_optimizer([nn.Parameter(torch.zeros(1))])
        return optimizer, spec.build_lr_scheduler(optimizer, 9)

    optimizer, scheduler = built()
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    resumed_optimizer, resumed = built()
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    for each in (scheduler, resumed):
        each.step()
    assert resumed.get_last_lr() == scheduler.get_last_lr()
    assert resumed_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_specs_are_values():
    spec = OptimizerSpec(learning_rate=1e-4)
    assert replace(spec, learning_rate=2e-4) != spec == OptimizerSpec(learning_rate=1e-4)
