"""Every slip of a method in its step is an error that names the method, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from small_video import SmallVideoAdapter, small_raw_batch, small_roles, small_run

import fvd
from fvd.config.models import MethodConfig
from fvd.errors import PluginError
from fvd.step_contract import check_method, checked_losses, checked_roles_to_update
from fvd.testing.steps import step_random, train_step

NAMED = r"the method slippery \(.*Slippery\)"


class Slippery(fvd.Method):
    """Yields what ``step(value)`` yields; ``value`` is a good loss value."""

    role_names = ("student", "teacher")
    step: Callable[[torch.Tensor], object]
    due: object = ("student",)
    optimized = ("student",)

    def optimizer_specs(self):
        return dict.fromkeys(self.optimized, fvd.OptimizerSpec(learning_rate=1e-2))

    def single_train_step(self, batch, iteration, *, rng):
        prepared = self.adapter.prepare_batch(batch, latents_source="data")
        t = 1000 * rng.rand()
        return self.step(self.adapter.bind(self.roles["student"]).predict(prepared.latents, t, prepared.cond).square().mean())

    def roles_to_update(self, iteration):
        return self.due


def slippery(step: Callable[[torch.Tensor], object] | None = None, **attributes: object) -> Slippery:
    """A method that slips where it is told to, built as a run builds it."""
    roles = small_roles({"student": True, "teacher": False})
    run = small_run(roles, MethodConfig(), method="slippery")
    written = type("Slippery", (Slippery,), attributes)
    method = written.build(run=run, roles=roles, adapter=SmallVideoAdapter())
    method.step = step or good
    return method


def good(value: torch.Tensor) -> Iterator[fvd.Loss]:
    yield fvd.Loss("loss", value, role="student", metrics={"level": 1.0}, counts={"dropped": torch.tensor(2)})


def losses_of(method: Slippery) -> list[fvd.Loss]:
    return list(checked_losses(method, small_raw_batch(2), 1, step_random(1, 2)))


def test_a_good_step_passes():
    (loss,) = losses_of(slippery())
    assert (loss.name, loss.role) == ("loss", "student")
    assert train_step(slippery(), small_raw_batch(2), 1).keys() == {"loss", "level", "dropped"}


def no_loss(value):
    yield from ()


def returns_instead(value):
    return fvd.Loss("loss", value, role="student")


def returns_a_list(value):
    return [fvd.Loss("loss", value, role="student")]


def tensor_instead(value):
    yield value


def frozen_role(value):
    yield fvd.Loss("loss", value, role="teacher")


def unknown_role(value):
    yield fvd.Loss("loss", value, role="studnet")


def number_instead(value):
    yield fvd.Loss("loss", float(value.detach()), role="student")


def not_scalar(value):
    yield fvd.Loss("loss", value.expand(2), role="student")


def one_element(value):
    yield fvd.Loss("loss", value.reshape(1), role="student")


def detached(value):
    yield fvd.Loss("loss", value.detach(), role="student")


def float64(value):
    yield fvd.Loss("loss", value.double(), role="student")


def bfloat16(value):
    yield fvd.Loss("loss", value.to(torch.bfloat16), role="student")


def two_of_one_name(value):
    yield fvd.Loss("loss", value, role="student")
    yield fvd.Loss("loss", value * 1, role="student")


def metric_named_as_the_loss(value):
    yield fvd.Loss("loss", value, role="student", metrics={"loss": 1.0})


def count_named_as_a_metric(value):
    yield fvd.Loss("loss", value, role="student", metrics={"n": 1.0}, counts={"n": 1.0})


def metric_named_as_an_earlier_one(value):
    yield fvd.Loss("loss", value, role="student", metrics={"n": 1.0})
    yield fvd.Loss("other", value * 1, role="student", counts={"n": 1.0})


def metric_with_a_graph(value):
    yield fvd.Loss("loss", value, role="student", metrics={"level": value * 1})


def count_with_a_graph(value):
    yield fvd.Loss("loss", value, role="student", counts={"level": value * 1})


def metric_of_many(value):
    yield fvd.Loss("loss", value, role="student", metrics={"level": torch.zeros(2)})


def metric_of_one_element(value):
    yield fvd.Loss("loss", value, role="student", metrics={"level": torch.zeros(1)})


def text_as_a_metric(value):
    yield fvd.Loss("loss", value, role="student", metrics={"level": "high"})


def truth_as_a_count(value):
    yield fvd.Loss("loss", value, role="student", counts={"level": True})


def inside_no_grad(value):
    with torch.no_grad():
        yield fvd.Loss("loss", value, role="student")


def inside_autocast(value):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield fvd.Loss("loss", value, role="student")


SLIPS = [
    (no_loss, "yielded no loss at iteration 1"),
    (returns_instead, "must yield its losses, it returned Loss"),
    (returns_a_list, "must yield its losses, it returned list"),
    (tensor_instead, r"must yield fvd\.Loss, it yielded Tensor"),
    (frozen_role, "'loss' is for the role 'teacher', which is not a trained role"),
    (unknown_role, "'loss' is for the role 'studnet', which is not a trained role"),
    (number_instead, "must be one float32 number .*, got float"),
    (not_scalar, r"must be one float32 number .*, got \[2\] torch.float32"),
    (one_element, r"must be one float32 number .*, got \[1\] torch.float32"),
    (detached, "'loss' reaches no parameter"),
    (float64, r"must be one float32 number .*, got \[\] torch.float64"),
    (bfloat16, r"must be one float32 number .*, got \[\] torch.bfloat16"),
    (two_of_one_name, "two of its losses and metrics have one name, among .*'loss'"),
    (metric_named_as_the_loss, "two of its losses and metrics have one name"),
    (count_named_as_a_metric, "two of its losses and metrics have one name"),
    (metric_named_as_an_earlier_one, "two of its losses and metrics have one name"),
    (metric_with_a_graph, "the metric 'level' carries a graph"),
    (count_with_a_graph, "the count 'level' carries a graph"),
    (metric_of_many, r"the metric 'level' must be one number .*, got \[2\]"),
    (metric_of_one_element, r"the metric 'level' must be one number .*, got \[1\]"),
    (text_as_a_metric, "the metric 'level' must be a number or a 0-dim tensor, got str"),
    (truth_as_a_count, "the count 'level' must be a number or a 0-dim tensor, got bool"),
    (inside_no_grad, r"yielded its loss 'loss' inside a `with"),
    (inside_autocast, r"yielded its loss 'loss' inside a `with"),
]


@pytest.mark.parametrize(("slip", "words"), SLIPS, ids=lambda value: value.__name__ if callable(value) else "")
def test_a_slip_names_the_method(slip, words):
    with pytest.raises(PluginError, match=f"{NAMED}.*{words}") as caught:
        losses_of(slippery(slip))
    assert caught.value.cure.startswith(("This is a mistake in the method's code;", "Compute inside the block"))
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_the_tool_for_plugin_authors_finds_the_same():
    with pytest.raises(PluginError, match="yielded no loss"):
        train_step(slippery(no_loss), small_raw_batch(2), 1)
    with pytest.raises(PluginError, match="roles_to_update"):
        train_step(slippery(due=["teacher"]), small_raw_batch(2), 1)


@pytest.mark.parametrize("due", ["student", ["teacher"], ["student", "studnet"], ("critic",), ["student", "student"]], ids=str)
def test_roles_to_update_must_be_trained_roles(due):
    method = slippery(due=due)
    with pytest.raises(
        PluginError, match=rf"{NAMED}.*roles_to_update\(4\) must be a list out of \['student'\], each once, got"
    ):
        checked_roles_to_update(method, 4)


@pytest.mark.parametrize("due", [[], ["student"], ("student",)], ids=str)
def test_roles_that_may_move(due):
    assert list(checked_roles_to_update(slippery(due=due), 4)) == list(due)


# --- as built --------------------------------------------------------------------------------------------------------
def spec(*roles: str) -> fvd.MethodSpec:
    needs = {role: fvd.RoleNeeds(trainable=True) for role in roles}
    return fvd.MethodSpec(name="slippery", target="a:b", config="a:c", roles=needs)


def test_a_method_is_what_its_descriptor_says():
    check_method(slippery(), spec("teacher", "student"))
    with pytest.raises(PluginError, match=rf"{NAMED}.*role_names \['student', 'teacher'\] are not .* roles \['student'\]"):
        check_method(slippery(), spec("student"))


def test_a_role_that_there_is_not_is_a_mistake_of_the_code():
    """The roles of the run file have been checked before."""
    roles = small_roles({"student": True, "teacher": False})
    words = r"code asks for the role 'studnet' \(did you mean 'student'\?\); the run has: student, teacher"
    with pytest.raises(PluginError, match=words) as caught:
        roles["studnet"]
    assert caught.value.cure == "This is a mistake in the method's code; report it to its authors, unless it is yours."


def test_a_trained_role_has_an_optimizer():
    with pytest.raises(PluginError, match=f"{NAMED}.*no optimizer for the trained role 'student'"):
        check_method(slippery(optimized=()), spec("teacher", "student"))
