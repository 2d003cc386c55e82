"""The average of a role's weights: its recursion, its clock, its place in the modules, checkpoints, and as DTensors."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from small_video import small_roles
from torch import nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from fvd.checkpoint.manager import CheckpointManager, load_role_weights
from fvd.config.changes import changed_keys, may_change
from fvd.config.optimization import EmaSettings
from fvd.ema import Ema
from fvd.errors import CheckpointError, FvdError
from fvd.optim import OptimizerSpec
from fvd.plugins.lock import Lock
from fvd.roles import RoleHandle, RoleManager
from fvd.updates import RoleUpdates

LOCK = Lock(fvd_core="0", python="3", torch="2", plugins=(), packages={}, run_file={})
DESCRIBED = {"method_state": {}, "loader_state": {}, "lock": LOCK}
SPEC = OptimizerSpec(learning_rate=1e-2, lr_scheduler="cosine", lr_warmup_steps=2)


def roles_with_ema(*names: str, decay: float = 0.9, start_step: int = 0, seed: int = 0) -> RoleManager:
    """Trained roles; those of ``names`` have an average."""
    roles = small_roles({"student": True, "critic": True, "teacher": False}, seed=seed)
    for handle in roles.trainable:
        handle.optimizers["main"] = SPEC.build_optimizer(handle.trainable_parameters())
        handle.lr_schedulers["main"] = SPEC.build_lr_scheduler(handle.optimizers["main"], 20)
        if handle.name in names:
            handle.ema = Ema(handle.modules, EmaSettings(decay=decay, start_step=start_step))
    return roles


def move(handle: RoleHandle, times: int = 1) -> None:
    """Steps whose gradients depend on the weights and on how often the role has moved."""
    for _ in range(times):
        for index, parameter in enumerate(handle.trainable_parameters()):
            parameter.grad = torch.sin(parameter.detach() * 3 + index + handle.updates)
        handle.step()
        handle.optimizers["main"].zero_grad()


def weights(handle: RoleHandle) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in handle.trainable_parameters()]


def average(handle: RoleHandle) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in handle.ema.tensors.values()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


# --- the recursion -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("start_step", [0, 1, 4, 100])
def test_the_recursion_in_float64(start_step):
    handle = roles_with_ema("student", decay=0.75, start_step=start_step)["student"]
    expected = [parameter.double() for parameter in weights(handle)]
    for update in range(1, 9):
        move(handle)
        now = [parameter.double() for parameter in weights(handle)]
        decay = 0.0 if update <= start_step else 0.75
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, now, strict=True)]
        for got, want in zip(average(handle), expected, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-7)
        assert same(average(handle), weights(handle)) == (update <= start_step)


def test_a_decay_of_zero_is_the_weights():
    handle = roles_with_ema("student", decay=0.0)["student"]
    move(handle, 3)
    torch.testing.assert_close(average(handle), weights(handle), rtol=1e-6, atol=1e-7)


def test_a_role_that_does_not_move_does_not_move_its_average():
    roles = roles_with_ema("student", "critic")
    student, critic = roles["student"], roles["critic"]
    move(student)
    before = average(student)
    move(critic, 5)
    assert same(average(student), before)
    assert (student.updates, critic.updates) == (1, 5)


def test_a_skipped_step_moves_no_clock():
    handle = roles_with_ema("student")["student"]
    move(handle, 2)
    before = weights(handle), average(handle), handle.updates, handle.lr_schedulers["main"].state_dict()
    for parameter in handle.trainable_parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    updates = RoleUpdates(handle)
    updates.apply(float(updates.clip()))
    after = weights(handle), average(handle), handle.updates, handle.lr_schedulers["main"].state_dict()
    assert same(before[0], after[0])
    assert same(before[1], after[1])
    assert before[2:] == after[2:]


def test_weights_in_low_precision_are_refused():
    module = nn.Linear(2, 2).bfloat16()
    with pytest.raises(FvdError, match=r"float32; network\.weight is in torch\.bfloat16"):
        Ema({"network": module}, EmaSettings())


def test_frozen_parameters_and_buffers_are_the_modules():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module[0].bias.requires_grad_(False)
    ema = Ema({"network": module}, EmaSettings(decay=0.5))
    assert set(ema.tensors) == {"network.0.weight", "network.1.weight", "network.1.bias"}
    module[1].running_mean.fill_(7)
    with ema.swapped_in():
        assert module[1].running_mean.tolist() == [7, 7]


# --- in the modules ------------------------------------------------------------------------------------------------------
def test_the_average_is_in_the_modules_and_the_weights_come_back():
    handle = roles_with_ema("student")["student"]
    move(handle, 3)
    before, averaged = weights(handle), average(handle)
    places = [parameter.data_ptr() for parameter in handle.trainable_parameters()]
    with handle.ema.swapped_in():
        assert same(weights(handle), averaged)
        assert not same(weights(handle), before)
        assert [parameter.data_ptr() for parameter in handle.trainable_parameters()] == places
    assert same(weights(handle), before)
    assert same(average(handle), averaged)
    assert [parameter.data_ptr() for parameter in handle.trainable_parameters()] == places


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_weights_come_back_whatever_happens(error):
    handle = roles_with_ema("student")["student"]
    move(handle, 3)
    before, averaged = weights(handle), average(handle)
    with pytest.raises(error), handle.ema.swapped_in():
        raise error
    assert same(weights(handle), before)
    assert same(average(handle), averaged)


def test_the_weights_come_back_from_an_exchange_that_broke_off(monkeypatch):
    handle = roles_with_ema("student")["student"]
    move(handle, 3)
    before, averaged = weights(handle), average(handle)
    exchange, calls = handle.ema._exchange, []

    def breaks_at_the_third(name: str) -> None:
        calls.append(name)
        if len(calls) == 3:
            raise MemoryError
        exchange(name)

    monkeypatch.setattr(handle.ema, "_exchange", breaks_at_the_third)
    with pytest.raises(MemoryError), handle.ema.swapped_in():
        pass
    assert same(weights(handle), before)
    assert same(average(handle), averaged)


def test_training_goes_on_as_if_nothing_had_been():
    looked_at, left_alone = roles_with_ema("student")["student"], roles_with_ema("student")["student"]
    for _ in range(4):
        move(looked_at)
        with looked_at.ema.swapped_in():
            pass
        move(left_alone)
    assert same(weights(looked_at), weights(left_alone))
    assert same(average(looked_at), average(left_alone))


def test_nothing_moves_while_the_average_is_in():
    handle = roles_with_ema("student")["student"]
    with handle.ema.swapped_in():
        with pytest.raises(RuntimeError, match="leave `swapped_in` first"):
            handle.ema.update(1)
        with pytest.raises(RuntimeError, match="leave `swapped_in` first"), handle.ema.swapped_in():
            pass


# --- checkpoints ---------------------------------------------------------------------------------------------------------
def saved(tmp_path, roles: RoleManager) -> CheckpointManager:
    manager = CheckpointManager(tmp_path / "checkpoints")
    manager.save(5, roles, **DESCRIBED)
    return manager


@pytest.mark.parametrize("start_step", [0, 3])
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path, start_step):
    straight = roles_with_ema("student", start_step=start_step)
    for handle in straight.trainable:
        move(handle, 2)
    manager = saved(tmp_path, straight)
    resumed = roles_with_ema("student", start_step=start_step, seed=1)
    manager.load(manager.latest(), resumed, nn.Module())
    for roles in (straight, resumed):
        move(roles["student"], 4)
        move(roles["critic"], 3)
    for name in ("student", "critic"):
        assert same(weights(straight[name]), weights(resumed[name]))
        assert straight[name].updates == resumed[name].updates
        assert straight[name].optimizers["main"].param_groups[0]["lr"] == resumed[name].optimizers["main"].param_groups[0]["lr"]
    assert same(average(straight["student"]), average(resumed["student"]))


def test_an_average_that_is_asked_for_later_begins_at_the_weights(tmp_path, caplog):
    without = roles_with_ema()
    move(without["student"], 3)
    manager = saved(tmp_path, without)
    resumed = roles_with_ema("student", seed=1)
    with caplog.at_level(logging.INFO):
        manager.load(manager.latest(), resumed, nn.Module())
    assert same(average(resumed["student"]), weights(without["student"]))
    assert "no average of student: it begins at the weights of step 5" in caplog.text
    assert resumed["student"].updates == 3


def test_an_average_that_is_not_kept_any_more_is_left_aside_and_that_is_said(tmp_path, caplog):
    roles = roles_with_ema("student")
    move(roles["student"], 3)
    manager = saved(tmp_path, roles)
    resumed = roles_with_ema(seed=1)
    with caplog.at_level(logging.INFO):
        manager.load(manager.latest(), resumed, nn.Module())
    assert resumed["student"].ema is None
    assert [record.getMessage() for record in caplog.records if record.name == "fvd.checkpoint.manager"] == [
        "the run keeps no average of student: that of the checkpoint goes no further"
    ]
    assert same(weights(resumed["student"]), weights(roles["student"]))


def test_a_checkpoint_from_before_roles_counted(tmp_path):
    """The schedules have ticked with the roles."""
    roles = roles_with_ema()
    move(roles["critic"], 4)
    manager = saved(tmp_path, roles)
    checkpoint = manager.latest()
    for key in ("updates", "ema"):
        del checkpoint.description[key]
    resumed = roles_with_ema("critic", seed=1)
    manager.load(checkpoint, resumed, nn.Module())
    assert (resumed["critic"].updates, resumed["student"].updates) == (4, 0)
    assert same(average(resumed["critic"]), weights(roles["critic"]))


@pytest.mark.parametrize("which", ["raw", "ema"])
def test_one_role_alone_with_either_weights(tmp_path, which):
    roles = roles_with_ema("student")
    move(roles["student"], 3)
    manager = saved(tmp_path, roles)
    alone = small_roles({"student": False}, seed=9)["student"]
    load_role_weights(manager.latest(), alone, which)
    expected = weights(roles["student"]) if which == "raw" else average(roles["student"])
    assert same([parameter.detach() for parameter in alone.modules["transformer"].parameters()], expected)


def test_an_average_that_is_not_there_is_refused(tmp_path):
    roles = roles_with_ema("student")
    manager = saved(tmp_path, roles)
    with pytest.raises(CheckpointError, match=r"no average \(EMA\) of role critic"):
        load_role_weights(manager.latest(), small_roles({"critic": False})["critic"], "ema")


def test_an_average_may_come_go_and_change_in_a_run():
    off, on = {"roles": {"student": {"ema": False}}}, {"roles": {"student": {"ema": {"decay": 0.9, "start_step": 0}}}}
    assert "roles.student.ema.decay" in changed_keys(off, on)
    assert all(map(may_change, {**changed_keys(off, on), **changed_keys(on, off)}))
    assert not may_change("roles.student.path")


# --- sharded -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def one_process_mesh() -> Iterator[dist.DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def test_the_average_of_sharded_weights_is_sharded_like_them(one_process_mesh):
    """One process is enough to see that placement, update, exchange and a fused step know DTensors."""

    def handle_of(sharded: bool) -> RoleHandle:
        torch.manual_seed(0)
        module = nn.Linear(4, 6)
        if sharded:
            for name, parameter in list(module.named_parameters()):
                setattr(module, name, nn.Parameter(distribute_tensor(parameter.detach(), one_process_mesh, [Shard(0)])))
        handle = RoleHandle("student", "none", True, {"network": module}).apply_trainable()
        handle.optimizers["main"] = SPEC.build_optimizer(handle.trainable_parameters())
        handle.lr_schedulers["main"] = SPEC.build_lr_scheduler(handle.optimizers["main"], 20)
        handle.ema = Ema(handle.modules, EmaSettings(decay=0.5, start_step=1))
        return handle

    whole, sharded = handle_of(False), handle_of(True)
    for handle in (whole, sharded):
        move(handle, 4)
    for name, tensor in sharded.ema.tensors.items():
        assert isinstance(tensor, DTensor)
        assert tensor.placements == sharded.ema.parameters[name].placements == (Shard(0),)
        assert torch.equal(tensor.to_local(), whole.ema.tensors[name])
    before = [parameter.to_local() for parameter in weights(sharded)]
    with sharded.ema.swapped_in():
        assert same([parameter.to_local() for parameter in weights(sharded)], average(whole))
    assert same([parameter.to_local() for parameter in weights(sharded)], before)
