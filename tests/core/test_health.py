"""Alarms: their figures on synthetic series, when they are said, and movement of weights on real optimizers."""

from __future__ import annotations

import json
import logging
import math
import random
import statistics

import pytest
import torch
from torch import nn

import fvd
from fvd.health import HealthRule, LowestMedian, RecentMedian, Rise
from fvd.health.core_rules import AlwaysClipped, Exploding, NonFiniteGradient, rules_of_role
from fvd.health.monitor import CLEAR_AFTER, REPEAT_EVERY, HealthMonitor
from fvd.health.movement import UnmovedTensors
from fvd.health.past import FIRST, LAST, PastStep, past_steps


def log_normal(count: int, decades: float, seed: int = 0) -> list[float]:
    """A loss at random timesteps: its logarithm is normal with this standard deviation."""
    generator = random.Random(seed)
    return [10 ** generator.gauss(0, decades) for _ in range(count)]


# --- series ---
def test_a_recent_median_is_the_median_of_the_last_finite_values():
    recent, kept = RecentMedian(7), []
    assert math.isnan(recent.value)
    for value in [math.nan, *log_normal(30, 1.0), math.inf, 2.0, 2.0, 2.0, *log_normal(30, 1.0, seed=1)]:
        recent.add(value)
        kept += [value] if math.isfinite(value) else []
        if kept:
            assert recent.value == statistics.median(kept[-7:])
        assert recent.full == (len(kept) >= 7)


def test_the_lowest_median():
    lowest = LowestMedian(3)
    values = [9.0, 1.0, 9.0, 4.0, 5.0, 6.0, 30.0]
    for value in values:
        lowest.add(value)
    assert lowest.value == min(statistics.median(values[at : at + 3]) for at in range(5))
    assert lowest.median.value == 6.0


def risen_at(values: list[float], factor: float = 10.0) -> list[int]:
    rise, found = Rise(factor), []
    for step, value in enumerate(values):
        rise.add(value)
        if rise.has_risen:
            found.append(step)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_noise_and_learning_do_not_rise(seed):
    noise = log_normal(3000, 0.5, seed)
    assert risen_at(noise) == []
    assert risen_at([value * math.exp(-step / 300) for step, value in enumerate(noise)]) == []
    assert risen_at([value * (1 + step / 100) for step, value in enumerate(noise)]) == []


def test_two_networks_that_begin_equal_and_part_do_not_rise():
    assert risen_at([float(step) ** 2 for step in range(1, 2000)]) == []


def test_a_jump_rises_and_stays_risen_until_it_is_over():
    values = [1.0] * 200 + [50.0] * 500 + [1.0] * 100
    found = risen_at(values)
    assert found[0] == pytest.approx(210, abs=1)
    assert found == list(range(found[0], found[-1] + 1))
    assert found[-1] == pytest.approx(709, abs=1)


def test_numbers_that_are_not_positive_have_no_ratio():
    assert risen_at([-1.0] * 100 + [50.0] * 100) == []
    assert risen_at([0.0] * 100 + [50.0] * 100) == []


# --- rules ---
def observe_all(rule: HealthRule, rows: list[dict[str, float]]) -> list[str | None]:
    return [rule.observe(row) for row in rows]


def test_exploding_says_from_what_to_what():
    rule = Exploding("loss_exploding", "train/loss")
    found = observe_all(rule, [{"train/loss": value} for value in [0.5] * 100 + [20.0] * 30])
    assert found[:109] == [None] * 109
    assert found[-1] == "train/loss has risen 40 times, from 0.5 to 20"


def test_clipping_is_told_where_the_norm_is_far_above_the_clip():
    def rows(norm: float, share: float, count: int) -> list[dict[str, float]]:
        return [{"health/clipped_share_student": share, "grad_norm/student": norm}] * count

    assert not any(observe_all(AlwaysClipped("student", 1.0), rows(5.0, 1.0, 300)))  # tight, as many are
    assert not any(observe_all(AlwaysClipped("student", 1.0), rows(50.0, 0.5, 300)))
    found = observe_all(AlwaysClipped("student", 1.0), rows(50.0, 1.0, 300))
    assert found[98] is None
    assert found[99] == "100% of the last updates of student were clipped: the median norm is 50, the clip 1"


def test_a_role_that_is_not_clipped_has_no_rule_for_it():
    assert not any(isinstance(rule, AlwaysClipped) for rule in rules_of_role("student", 0.0))
    assert any(isinstance(rule, AlwaysClipped) for rule in rules_of_role("student", 1.0))


# --- the monitor ---
class Scripted(HealthRule):
    name, watches, fires_when, remedy = "scripted", ("x",), "x is above 0", "Do something."

    def __init__(self, ends_run_after: int | None = None) -> None:
        self.ends_run_after = ends_run_after

    def observe(self, metrics):
        return f"x is {metrics['x']:g}" if metrics["x"] > 0 else None


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_an_alarm_is_said_once_and_again_when_it_has_been_gone(caplog):
    monitor = HealthMonitor([Scripted()])
    series = [0.0] + [1.0] * 30 + [0.0] * (CLEAR_AFTER - 1) + [2.0] + [0.0] * CLEAR_AFTER + [3.0]
    states = [monitor.observe(step, {"x": value})["health/scripted"] for step, value in enumerate(series, 1)]
    last = len(series)
    assert said(caplog) == [
        "[scripted] step 2: x is 1. Remedy: Do something.",
        f"[scripted] step {last}: x is 3. Remedy: Do something.",
    ]
    assert states == [0.0] + [1.0] * (last - 3) + [0.0, 1.0]


def test_an_alarm_that_stays_is_said_again_now_and_then(caplog):
    monitor = HealthMonitor([Scripted()])
    for step in range(1, 2 * REPEAT_EVERY + 10):
        monitor.observe(step, {"x": 1.0})
    assert [message.split(":")[0] for message in said(caplog)] == [
        "[scripted] step 1",
        f"[scripted] step {REPEAT_EVERY + 1}",
        f"[scripted] step {2 * REPEAT_EVERY + 1}",
    ]


def test_steps_without_its_metrics_are_no_observations(caplog):
    monitor = HealthMonitor([Scripted(ends_run_after=3)])
    for step in range(1, 30):
        assert monitor.observe(step, {"y": 1.0}) == {"health/scripted": 0.0}
    assert monitor.why_it_failed(30) is None


def test_findings_in_a_row_end_a_run_and_one_good_step_begins_anew():
    monitor = HealthMonitor([Scripted(ends_run_after=3)])
    assert monitor.doubtful_since is None
    for step, value in enumerate([1, 1, 0, 1, 1], 1):
        monitor.observe(step, {"x": float(value)})
        assert monitor.why_to_end_now(step) is None
        assert monitor.doubtful_since == [1, 1, None, 4, 4][step - 1]
    monitor.observe(6, {"x": 7.0})
    failure = monitor.why_to_end_now(6)
    assert str(failure.error) == "[scripted] step 6: x is 7; 3 times in a row\nDo something."
    assert failure.began == 4
    monitor.observe(7, {"y": 1.0})
    assert monitor.why_to_end_now(7) is None  # nothing new is known


@pytest.mark.parametrize(
    ("series", "began"),
    [
        ([1], 1),
        ([0, 1], 2),
        ([1, 0, 1, 1], 1),
        ([0, 0, 1], None),
        ([1, 1, 1, 0], None),
        ([1] * 50 + [0] * 5 + [1] * 5, 56),
        ([1] * 50 + [0] * 6 + [1] * 4, None),
        ([0] * 3 + [1] * 15, 4),
    ],
)
def test_a_run_failed_where_the_last_is_a_finding_and_half_of_the_last_ten_are(series, began):
    monitor = HealthMonitor([Scripted(ends_run_after=100)])
    for step, value in enumerate(series, 1):
        monitor.observe(step, {"x": float(value)})
    failure = monitor.why_it_failed(len(series))
    assert (failure and failure.began) == began


class OfTwoRoles(Scripted):
    """x and y never come together."""

    watches, asked_with = ("x", "y"), "any"

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, float] = {}

    def observe(self, metrics):
        self.seen |= {name: metrics[name] for name in self.watches if name in metrics}
        return "both" if sum(self.seen.values()) == 2 else None


def test_a_rule_may_be_asked_where_any_of_its_metrics_is_there():
    monitor = HealthMonitor([OfTwoRoles()])
    found = [monitor.observe(step, row) for step, row in enumerate([{"x": 1.0}, {"z": 1.0}, {"y": 1.0}], 1)]
    assert [states["health/scripted"] for states in found] == [0.0, 0.0, 1.0]


# --- what was logged before ---
def write_rows(path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps({"data/epoch": 0.0, **row}) + "\n" for row in rows), encoding="utf-8")


def test_the_past_is_read_without_what_is_no_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert past_steps(path, 5) == []
    write_rows(path, [{"step": 1, "x": 1.0}, {"step": 2, "x": "nan"}, {"step": 4, "x": "-inf"}, {"step": 5}, {"step": 6}])
    with path.open("a", encoding="utf-8") as file:
        file.write('[]\n{"step": 5, "validation/loss": 1.0}\n{"step": 5, "x": null, "data/epoch": 0}\n{"step": 5, "x"')
    past = past_steps(path, 5)
    assert [(row.step, row.follows) for row in past] == [(1, False), (2, True), (4, False), (5, True)]
    assert [repr(row.metrics.get("x")) for row in past] == ["1.0", "nan", "-inf", "None"]


def test_of_a_long_past_the_beginning_and_the_end_are_read(tmp_path):
    write_rows(tmp_path / "metrics.jsonl", [{"step": step} for step in range(1, FIRST + LAST + 501)])
    past = past_steps(tmp_path / "metrics.jsonl", 10**6)
    assert [row.step for row in past] == [*range(1, FIRST + 1), *range(FIRST + 501, FIRST + LAST + 501)]
    assert [row.step for row in past if not row.follows] == [1, FIRST + 501]


def past_of(series: list[float]) -> list[PastStep]:
    return [PastStep(step, {"x": value}, follows=step > 1) for step, value in enumerate(series, 1)]


def test_the_past_is_silent_and_counts(caplog):
    monitor = HealthMonitor([Scripted(ends_run_after=4)], past_of([0, 1, 1]), start_step=3)
    assert monitor.why_to_end_now(3) is None
    assert monitor.observe(4, {"x": 1.0}) == {"health/scripted": 1.0}
    monitor.observe(5, {"x": 1.0})
    assert monitor.why_to_end_now(5).began == 2
    assert said(caplog) == []  # it was on, and said, before


def test_a_rule_that_comes_later_has_the_same_past():
    monitor = HealthMonitor([], past_of([0.5] * 100), start_step=100)
    monitor.add(Exploding("loss_exploding", "x"))
    states = [monitor.observe(step, {"x": 20.0})["health/loss_exploding"] for step in range(101, 131)]
    assert states[-1] == 1.0
    alone = HealthMonitor([Exploding("loss_exploding", "x")])
    assert not any(alone.observe(step, {"x": 20.0})["health/loss_exploding"] for step in range(101, 131))


def test_where_steps_are_missing_nothing_is_in_a_row():
    past = [PastStep(step, {"x": 1.0}, follows=False) for step in (10, 20, 30)]
    monitor = HealthMonitor([Scripted(ends_run_after=3)], past, start_step=35)
    monitor.observe(36, {"x": 1.0})
    monitor.observe(37, {"x": 1.0})
    assert monitor.why_to_end_now(37) is None
    monitor.observe(38, {"x": 1.0})
    assert monitor.why_to_end_now(38).began == 36


def test_a_rule_that_only_warns_never_ends_a_run():
    monitor = HealthMonitor([Scripted()])
    for step in range(1, 100):
        monitor.observe(step, {"x": 1.0})
    assert monitor.why_to_end_now(100) is None
    assert monitor.why_it_failed(100) is None


def test_rules_of_one_name_share_a_metric():
    monitor = HealthMonitor([NonFiniteGradient("student"), NonFiniteGradient("critic")])
    assert monitor.observe(1, {"skipped/student": 0.0, "skipped/critic": 1.0}) == {"health/non_finite": 1.0}


def test_a_rule_that_fails_does_not_end_the_run(caplog):
    class Faulty(Scripted):
        name = "faulty"

        def observe(self, metrics):
            return f"{1 / metrics['x']}"

    monitor = HealthMonitor([Faulty(), Scripted()])
    monitor.observe(1, {"x": 0.0})
    assert monitor.observe(2, {"x": 1.0}) == {"health/scripted": 1.0}
    assert "the health rule faulty failed and is left out" in said(caplog)[0]


# --- movement ---
def trained_role(dtype: torch.dtype, rate: float, **adam: object) -> fvd.RoleHandle:
    """A network as models are initialised (weights of some hundredths), a LayerNorm at 1, and a layer with none."""
    torch.manual_seed(0)
    module = nn.ModuleDict({"norm": nn.LayerNorm(256), "first": nn.Linear(256, 256), "last": nn.Linear(256, 8)})
    module["unused"] = nn.Linear(8, 8)
    module.to(dtype)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.0, **adam)
    return fvd.RoleHandle("student", "none", True, {"transformer": module}, optimizers={"main": optimizer})


def move(rule: UnmovedTensors, role: fvd.RoleHandle, steps: int) -> list[dict[str, float]]:
    module, seen = role.modules["transformer"], []
    for step in range(steps):
        x = torch.randn(32, 256, generator=torch.Generator().manual_seed(step)).to(module["first"].weight.dtype)
        loss = module["last"](torch.tanh(module["first"](module["norm"](x)))).float().square().mean()
        (loss + 0 * module["unused"].weight.float().sum()).backward()
        rule.before_step(role)
        role.optimizers["main"].step()
        seen.append(rule.after_step())
        role.optimizers["main"].zero_grad()
    return seen


def test_float32_weights_move_at_any_usual_rate():
    for rate in (1e-3, 1e-5, 4e-7):
        rule = UnmovedTensors("student")
        seen = move(rule, trained_role(torch.float32, rate), 12)
        assert [step for step, metrics in enumerate(seen, 1) if metrics] == [1, 10]
        assert seen[0] == seen[9] == {"health/unmoved_tensors_student": 0.0}
        assert rule.observe(seen[0]) is None


@pytest.mark.parametrize(("dtype", "rate"), [(torch.bfloat16, 1e-5), (torch.float32, 3e-11), (torch.float32, 0.0)])
def test_weights_that_rounding_holds_are_found_and_named(dtype, rate):
    role = trained_role(dtype, rate)
    before = role.modules["transformer"]["first"].weight.detach().clone()
    rule = UnmovedTensors("student")
    metrics = move(rule, role, 1)[0]
    kept = (role.modules["transformer"]["first"].weight == before).float().mean()
    assert kept > 0.8  # the run is really broken
    assert metrics["health/unmoved_tensors_student"] > 0.5
    finding = rule.observe(metrics)
    assert "an optimizer step of student left" in finding
    assert "transformer.norm.weight" in finding
    assert "unused" not in finding


def test_bfloat16_moves_where_the_rate_is_large_enough():
    rule = UnmovedTensors("student")
    metrics = move(rule, trained_role(torch.bfloat16, 1e-2), 1)[0]
    assert rule.observe(metrics) is None


def test_a_warm_up_is_not_looked_at():
    role = trained_role(torch.float32, 1e-3)
    torch.optim.lr_scheduler.LambdaLR(role.optimizers["main"], lambda step: 1e-8)
    rule = UnmovedTensors("student")
    assert move(rule, role, 3) == [{}, {}, {}]
    role.optimizers["main"].param_groups[0]["lr"] = 5e-4
    assert move(rule, role, 1) == [{"health/unmoved_tensors_student": 0.0}]


class Above(HealthRule):
    """Finds what is above 1."""

    fires_when, remedy = "above 1", "Lower it."

    def __init__(self, name: str, metric: str) -> None:
        self.name, self.watches = name, (metric,)

    def observe(self, metrics):
        return "above 1" if metrics[self.watches[0]] > 1 else None


def test_the_alarms_of_a_run_are_listed_at_its_end():
    monitor = HealthMonitor([Above("late", "a"), Above("early", "b"), Above("never", "c"), Above("early", "d")])
    assert monitor.describe_alarms() == ""
    for step in range(1, 2 * CLEAR_AFTER):
        monitor.observe(step, {"a": 2.0 * (step > CLEAR_AFTER), "b": 2.0 * (step == 7), "c": 0.0, "d": 2.0 * (step == 5)})
    assert monitor.describe_alarms() == f"early at step 5, late since step {CLEAR_AFTER + 1}"
