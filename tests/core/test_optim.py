"""Learning-rate schedules against values worked out by hand, and the optimizers built from a spec."""

from __future__ import annotations

import inspect
import math
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from fvd import FvdError, OptimizerSpec
from fvd.config.optimization import ARGUMENT_KINDS, KNOWN_OPTIMIZERS, MAY_BE_NULL, SETTINGS, is_of_kind, takes_setting
from fvd.config.optimizers import REFUSED_OPTIMIZERS, is_eight_bit
from fvd.optim import find_optimizer, lr_multiplier

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


# --- any class of torch.optim --------------------------------------------------------------------------------------------
DENSE = sorted(name for name in KNOWN_OPTIMIZERS if not is_eight_bit(name))


def weights(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.arange(1.0, 1 + math.prod(shape)).reshape(shape))


def test_known_optimizers_are_those_of_torch():
    """`fvd check` knows them without torch; this says when torch has changed."""
    found = {
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    assert set(DENSE) | set(REFUSED_OPTIMIZERS) == found


@pytest.mark.parametrize("name", DENSE)
def test_what_an_optimizer_takes_is_what_its_class_says(name):
    said = set(inspect.signature(find_optimizer(name)).parameters) - {"params"}
    assert said - ({"eps"} if name == "Adafactor" else set()) == KNOWN_OPTIMIZERS[name]


@pytest.mark.parametrize("name", DENSE)
def test_settings_reach_the_classes_that_take_them(name):
    spec = OptimizerSpec(name=name, learning_rate=0.25, betas=(0.5, 0.75), eps=0.125, weight_decay=0.375)
    group = spec.build_optimizer([weights(2, 2)]).param_groups[0]
    for setting, argument in {"learning_rate": "lr", "betas": "betas", "eps": "eps", "weight_decay": "weight_decay"}.items():
        if takes_setting(name, setting):
            assert group[argument] == getattr(spec, setting)


@pytest.mark.parametrize("name", DENSE)
def test_every_optimizer_lowers_a_parabola(name):
    parameter = weights(2, 2)
    optimizer = OptimizerSpec(name=name, learning_rate=1e-2).build_optimizer([parameter])
    before = parameter.square().sum()
    for _ in range(5):
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()
    assert parameter.square().sum() < before


@pytest.mark.parametrize("name", DENSE)
def test_what_an_argument_is_is_what_its_default_is(name):
    """Every argument that is no setting has a kind, and torch's default is of it."""
    for argument, parameter in inspect.signature(find_optimizer(name)).parameters.items():
        if argument in KNOWN_OPTIMIZERS[name] - set(SETTINGS.values()):
            is_null = parameter.default is None
            assert argument in MAY_BE_NULL if is_null else is_of_kind(parameter.default, ARGUMENT_KINDS[argument])


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("true or false", [True, False], [1, 0, "yes", None]),
        ("a number", [0, 0.5, -1], [True, "x", [1], None]),
        ("a list of 2 numbers", [[0.5, 1], (1, 2)], [[0.5], [1, 2, 3], [1, "x"], [1, True], 3, "ab", None]),
        ("a word", ["original"], [1, None, True]),
    ],
)
def test_kinds_of_arguments(kind, right, wrong):
    assert all(is_of_kind(value, kind) for value in right)
    assert not any(is_of_kind(value, kind) for value in wrong)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
@pytest.mark.parametrize("argument", ["foreach", "differentiable"])
def test_who_chooses_how_a_step_is_computed_gets_it_so(name, argument):
    spec = OptimizerSpec(name=name, learning_rate=0.1, arguments={argument: True})
    group = spec.build_optimizer([weights(2)]).param_groups[0]
    assert group[argument] is True
    assert not group["fused"]


def test_foreach_trains():
    OptimizerSpec(name="AdamW", learning_rate=0.1, arguments={"foreach": True}).try_out(torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("AdamW", {"amsgrad": 1}, r"AdamW cannot make a step with \{amsgrad: 1\}: _fused_adamw_"),
        ("AdamW", {"differentiable": True}, r"cannot make a step with \{differentiable: true\}"),
        ("Adadelta", {"rho": "x"}, r"Adadelta cannot be made with \{rho: x\}"),
        ("Rprop", {"etas": [0.5]}, r"Rprop cannot be made with \{etas: \[0.5\]\}"),
    ],
)
def test_what_fails_at_a_step_fails_before_weights_are_loaded(name, arguments, words):
    """With what the run file says, which the class's own words leave out."""
    with pytest.raises(FvdError, match=words) as caught:
        OptimizerSpec(name=name, learning_rate=0.1, arguments=arguments).try_out(torch.device("cpu"))
    assert len(caught.value.message) < 400
    assert "\n" not in caught.value.message
    assert f"{next(iter(arguments))}: " in caught.value.cure


@pytest.mark.parametrize("name", DENSE)
def test_every_optimizer_makes_the_trial_step(name):
    OptimizerSpec(name=name, learning_rate=0.1).try_out(torch.device("cpu"))


def test_muon_says_what_it_takes():
    with pytest.raises(FvdError, match=r"Muon takes 2D parameters alone, matrices, and there is one of shape \[3\]") as caught:
        OptimizerSpec(name="Muon", learning_rate=0.1).build_optimizer([weights(2, 2), weights(3)])
    assert caught.value.cure == "Use AdamW."


def test_arguments_reach_the_class():
    """SGD with momentum, two steps by hand: v <- 0.9 v + g, p <- p - lr v."""
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimizer = OptimizerSpec(name="SGD", learning_rate=0.5, arguments={"momentum": 0.9}).build_optimizer([parameter])
    for gradient in (1.0, 2.0):
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
    assert parameter.item() == pytest.approx(2.0 - 0.5 * 1.0 - 0.5 * (0.9 * 1.0 + 2.0))


def test_arguments_may_set_a_pair_that_the_key_cannot():
    optimizer = OptimizerSpec(name="Adafactor", learning_rate=0.1, arguments={"eps": [None, 0.5]}).build_optimizer([weights(2)])
    assert optimizer.param_groups[0]["eps"] == [None, 0.5]


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_fused_where_torch_has_it(name):
    parameter = weights(2)
    assert OptimizerSpec(name=name, learning_rate=0.1).build_optimizer([parameter]).param_groups[0]["fused"] is True
    spec = OptimizerSpec(name=name, learning_rate=0.1, arguments={"fused": False})
    assert spec.build_optimizer([parameter]).param_groups[0]["fused"] is False


def test_not_fused_where_torch_has_no_kernel():
    parameter = nn.Parameter(torch.zeros(2, device="meta"))
    assert not OptimizerSpec(learning_rate=0.1).build_optimizer([parameter]).param_groups[0]["fused"]


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_fused_steps_are_those_of_the_plain_formula(name):
    """Against torch's own loop in float64."""
    fast, slow = weights(3, 4), nn.Parameter(weights(3, 4).detach().double())
    settings = {"lr": 0.1, "weight_decay": 0.2, **({"betas": (0.5, 0.9)} if name == "AdamW" else {})}
    spec = OptimizerSpec(name=name, learning_rate=0.1, weight_decay=0.2, betas=(0.5, 0.9))
    optimizers = [spec.build_optimizer([fast]), getattr(torch.optim, name)([slow], **settings, foreach=False, fused=False)]
    for step in range(4):
        fast.grad, slow.grad = torch.sin(fast.detach() + step), torch.sin(slow.detach() + step)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(fast.double(), slow, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (OptimizerSpec(name="AdmW", learning_rate=0.1), "did you mean 'AdamW'"),
        (OptimizerSpec(name="Optimizer", learning_rate=0.1), "has no optimizer 'Optimizer'"),
        (OptimizerSpec(name="lr_scheduler", learning_rate=0.1), "has no optimizer"),
        (OptimizerSpec(name="LBFGS", learning_rate=0.1), "computes the loss several times"),
        (OptimizerSpec(name="SparseAdam", learning_rate=0.1), "sparse"),
        (OptimizerSpec(name="SGD", learning_rate=0.1, arguments={"momentu": 0.9}), "momentu"),
        (OptimizerSpec(name="SGD", learning_rate=0.1, arguments={"nesterov": True}), "Nesterov"),
        (OptimizerSpec(name="Muon", learning_rate=0.1), "2D"),
    ],
)
def test_what_cannot_be_made_says_why(spec, words):
    with pytest.raises(FvdError, match=words) as caught:
        spec.build_optimizer([weights(2)])
    assert caught.value.cure


def test_eight_bit_without_its_library_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "bitsandbytes.optim", raising=False)
    with pytest.raises(FvdError, match="not installed") as caught:
        OptimizerSpec(name="AdamW8bit", learning_rate=0.1).build_optimizer([weights(2)])
    assert "fvd-core[8bit]" in caught.value.cure


@pytest.mark.parametrize("name", sorted(name for name in KNOWN_OPTIMIZERS if is_eight_bit(name)))
def test_eight_bit(name):
    """Where the extra is installed: it takes what the table says, and a step of a large tensor is about AdamW's or Lion's."""
    pytest.importorskip("bitsandbytes")
    optimizer_class = find_optimizer(name)
    assert set(inspect.signature(optimizer_class).parameters) >= KNOWN_OPTIMIZERS[name]
    parameter = nn.Parameter(torch.linspace(-1, 1, 8192).reshape(64, 128))
    before = parameter.detach().clone()
    optimizer = OptimizerSpec(name=name, learning_rate=1e-2).build_optimizer([parameter])
    parameter.square().sum().backward()
    optimizer.step()
    assert any(value.dtype == torch.uint8 for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor))
    torch.testing.assert_close(parameter.detach(), before - 1e-2 * before.sign(), rtol=0, atol=1e-3)


# --- a role's own clock --------------------------------------------------------------------------------------------------
def test_explicit_zeros_stay():
    assert multipliers(4, lr_scheduler="polynomial", lr_power=0.0)[:5] == [1, 1, 1, 1, 1]
    assert multipliers(4, lr_scheduler="linear", min_lr_ratio=0.0)[4] == 0
    assert multipliers(3, lr_warmup_steps=0)[0] == 1
    assert OptimizerSpec(learning_rate=0.0).build_optimizer([weights(1)]).param_groups[0]["lr"] == 0
