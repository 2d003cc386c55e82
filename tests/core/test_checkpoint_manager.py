"""Checkpoints of small roles: round trips, keeping, refusals."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from small_video import small_roles

from fvd.checkpoint.manager import CheckpointManager, load_role_weights, read_checkpoint
from fvd.config.changes import changed_keys, may_change
from fvd.errors import CheckpointError
from fvd.optim import OptimizerSpec
from fvd.plugins.lock import Lock
from fvd.roles import RoleHandle, RoleManager

LOCK = Lock(fvd_core="0", python="3", torch="2", plugins=(), packages={}, run_file={"training": {"seed": 0}})
LOADER = {"epoch": 1, "position": 3, "data": "0123"}
DESCRIBED = {"method_state": {}, "loader_state": LOADER, "lock": LOCK}


class Averaging(torch.nn.Module):
    """What checkpoints see of a method that keeps something of its own."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("average", torch.full((3,), value))
        self.register_buffer("steps", torch.tensor(int(value)))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.best = f"step {value:g}"

    def get_extra_state(self) -> dict[str, str]:
        return {"best": self.best}

    def set_extra_state(self, state: dict[str, str]) -> None:
        self.best = state["best"]


def trained_roles(steps: int = 3, seed: int = 0) -> RoleManager:
    roles = small_roles({"student": True, "critic": True, "teacher": False}, seed=seed)
    for handle in roles.trainable:
        optimizer = OptimizerSpec(learning_rate=1e-2, lr_scheduler="cosine").build_optimizer(handle.trainable_parameters())
        handle.optimizers["main"] = optimizer
        handle.lr_schedulers["main"] = OptimizerSpec(learning_rate=1e-2, lr_scheduler="cosine").build_lr_scheduler(
            optimizer, 10
        )
    for _ in range(steps):
        step(roles["critic"])
    return roles


def step(handle: RoleHandle) -> None:
    for index, parameter in enumerate(handle.trainable_parameters()):
        parameter.grad = torch.sin(parameter.detach() + index)
    handle.optimizers["main"].step()
    handle.lr_schedulers["main"].step()
    handle.optimizers["main"].zero_grad()


def state(roles: RoleManager) -> dict:
    return copy.deepcopy(
        {
            handle.name: (handle.modules["transformer"].state_dict(), handle.optimizers["main"].state_dict())
            for handle in roles.trainable
        }
    )


def assert_equal_states(one: dict, other: dict) -> None:
    for role in one:
        (weights, optimizer), (weights_2, optimizer_2) = one[role], other[role]
        assert all(torch.equal(weights[name], weights_2[name]) for name in weights)
        assert optimizer["state"].keys() == optimizer_2["state"].keys()
        for index, entries in optimizer["state"].items():
            assert all(torch.equal(entries[key], optimizer_2["state"][index][key]) for key in entries)


def test_round_trip_is_exact_also_for_an_optimizer_that_never_stepped(tmp_path):
    """The student has not stepped yet. Its optimizer must have no state after loading: state with zeros at step 1 would
    change the bias correction of its first step."""
    roles = trained_roles()
    manager = CheckpointManager(tmp_path)
    before = state(roles)
    path = manager.save(3, roles, **DESCRIBED)
    assert_equal_states(before, state(roles))  # saving changes nothing
    others = trained_roles(steps=1, seed=5)
    checkpoint = read_checkpoint(path)
    manager.load(checkpoint, others, torch.nn.Module())
    assert_equal_states(before, state(others))
    assert others["student"].optimizers["main"].state == {}
    assert others["critic"].lr_schedulers["main"].last_epoch == 3
    assert checkpoint.loader_state == LOADER
    for handle in (roles["student"], others["student"], roles["critic"], others["critic"]):
        step(handle)
    assert_equal_states(state(roles), state(others))


def test_what_a_method_registers_on_itself_is_saved_and_restored(tmp_path):
    roles, method = trained_roles(), Averaging(7.0)
    path = CheckpointManager(tmp_path).save(3, roles, **DESCRIBED | {"method_state": method.state_dict()})
    method.average += 1  # saved is what was, not what is
    restored = Averaging(0.0)
    average = restored.average
    CheckpointManager(tmp_path).load(read_checkpoint(path), trained_roles(seed=5), restored)
    assert restored.average is average
    assert restored.average.tolist() == [7.0, 7.0, 7.0]
    assert restored.steps.item() == 7
    assert restored.steps.dtype == torch.int64
    assert restored.scratch.tolist() == [0.0, 0.0]
    assert restored.best == "step 7"  # torch's own hook for what is no tensor


def test_a_method_with_other_buffers_is_refused(tmp_path):
    roles = trained_roles()
    checkpoint = read_checkpoint(CheckpointManager(tmp_path).save(3, roles, **DESCRIBED))
    with pytest.raises(CheckpointError, match=r"cannot be loaded: .*method\.average"):
        CheckpointManager(tmp_path).load(checkpoint, roles, Averaging(0.0))


def test_a_role_and_a_method_may_share_names(tmp_path):
    """A role called method, and a method with a buffer called as a role's weights: they lie apart."""
    roles = small_roles({"method": True, "student": True})
    method = torch.nn.Module()
    method.register_buffer("student", torch.tensor(5.0))
    path = CheckpointManager(tmp_path).save(1, roles, **DESCRIBED | {"method_state": method.state_dict()})
    others, other = small_roles({"method": True, "student": True}, seed=4), torch.nn.Module()
    other.register_buffer("student", torch.tensor(0.0))
    CheckpointManager(tmp_path).load(read_checkpoint(path), others, other)
    assert other.student == 5.0
    for role in ("method", "student"):
        saved, loaded = (r[role].modules["transformer"].state_dict() for r in (roles, others))
        assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_one_role_alone(tmp_path):
    roles = trained_roles()
    checkpoint = read_checkpoint(CheckpointManager(tmp_path).save(3, roles, **DESCRIBED))
    other = small_roles({"critic": False}, seed=9)["critic"]
    load_role_weights(checkpoint, other, "raw")
    expected = roles["critic"].modules["transformer"].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.modules["transformer"].state_dict().items())
    with pytest.raises(CheckpointError, match="no weights of role teacher"):
        load_role_weights(checkpoint, small_roles({"teacher": False})["teacher"], "raw")


def test_only_the_newest_are_kept(tmp_path):
    roles = trained_roles()
    manager = CheckpointManager(tmp_path, total_limit=2)
    for number in (1, 2, 10, 3):
        manager.save(number, roles, **DESCRIBED)
    assert manager.steps() == [3, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]
    assert manager.latest().step == 10


def test_what_a_killed_save_leaves_is_not_a_checkpoint(tmp_path):
    roles = trained_roles()
    manager = CheckpointManager(tmp_path)
    for name in (".step-00000005.writing", ".step-00000003.writing", ".step-00000002.deleting"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint.json").write_text(json.dumps({"format": 1, "step": 5}))
    assert manager.latest() is None
    manager.save(5, roles, **DESCRIBED)
    assert manager.steps() == [5]
    manager.remove_leftovers()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    manager = CheckpointManager(tmp_path)
    manager.save(5, trained_roles(), **DESCRIBED)
    path = manager.save(5, trained_roles(), **DESCRIBED | {"loader_state": LOADER | {"epoch": 9}})
    assert read_checkpoint(path).loader_state["epoch"] == 9
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_models_of_another_size_are_refused(tmp_path):
    roles = trained_roles()
    checkpoint = read_checkpoint(CheckpointManager(tmp_path).save(3, roles, **DESCRIBED))
    other = small_roles({"critic": False})["critic"]
    other.modules["transformer"].out = torch.nn.Linear(16, 7)
    with pytest.raises(CheckpointError, match=r"cannot be loaded: .*roles\.critic\.modules\.transformer\.out\.weight"):
        load_role_weights(checkpoint, other, "raw")


def test_no_room(tmp_path, monkeypatch):
    roles = trained_roles()
    manager = CheckpointManager(tmp_path / "checkpoints")
    manager.save(1, roles, **DESCRIBED)
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("fvd.checkpoint.manager.shutil.disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match="step 2 could not be written") as caught:
        manager.save(2, roles, **DESCRIBED)
    assert "continues from step 1" in caught.value.cure
    assert manager.steps() == [1]


def test_not_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        CheckpointManager(tmp_path / "nothing").find(None)


def test_what_may_change_between_resumes():
    old = {
        "training": {"seed": 0, "max_train_steps": 5, "learning_rate": 1.0},
        "method_config": {"a": None},
        "plugins": {"only": None},
    }
    new = {
        "training": {"seed": 0, "max_train_steps": 9, "learning_rate": 2.0},
        "method_config": {"a": 0},
        "plugins": {"only": ["x"]},
    }
    changed = changed_keys(old, new)
    assert changed["training.max_train_steps"] == (5, 9)
    matter = {key: values for key, values in changed.items() if not may_change(key)}
    assert matter == {"training.learning_rate": (1.0, 2.0), "method_config.a": (None, 0)}
