"""DMD2's alarms: silent on sound toy runs, each raised by a run that is really broken in its way.

Runs are small and seeded: a network that has learnt the mixture a little, distilled from the exact teacher.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping

import pytest
import torch

import fvd
from fvd.cli.main import main
from fvd.health.core_rules import rules_of_loss
from fvd.health.monitor import HealthMonitor
from fvd.testing.steps import train_step
from fvd.testing.toy.method import ToyMethod
from fvd.testing.toy.network import AnalyticNetwork
from fvd.testing.toy.workbench import toy_batch, toy_family, toy_method
from fvd_dmd2.config import DMD2Config
from fvd_dmd2.health import (
    CRITIC_GAP,
    CRITIC_LOSS,
    DATA_STD,
    NORMALIZER,
    STUDENT_STD,
    TEACHER_STD,
    AllSamplesDropped,
    Collapse,
    CriticBehind,
    CriticExploding,
    rules,
)
from fvd_dmd2.method import DMD2Method

BATCH = 32
UPDATE_MODES = pytest.mark.parametrize("update_mode", ["joint", "either_or"])
"""In the latter student and critic never move in one step."""


@pytest.fixture(scope="module")
def learnt() -> dict[str, Mapping[str, torch.Tensor]]:
    """A network's weights after some training, by module name."""
    family = toy_family()
    method = toy_method(
        ToyMethod,
        fvd.MethodConfig(),
        {"student": True},
        family=family,
        training={"learning_rate": 3e-3, "max_train_steps": 200},
    )
    for iteration in range(1, 201):
        train_step(method, toy_batch(family, 128, first=128 * iteration), iteration)
    return {name: copy.deepcopy(module.state_dict()) for name, module in method.roles["student"].modules.items()}


class Broken(DMD2Method):
    """A student that is pulled towards 0 besides."""

    pull = 0.0

    def student_loss(self, x0, batch, rng, *args, **kwargs):
        loss = super().student_loss(x0, batch, rng, *args, **kwargs)
        return dataclasses.replace(loss, value=loss.value + self.pull * x0.square().mean())


@pytest.fixture
def alarms(learnt, caplog) -> Callable[..., list[str]]:
    """Run dmd2 and list the alarms, ``name`` by name, as the trainer would log them."""

    def run(
        steps: int,
        *,
        critic_rate: float = 1e-3,
        student_rate: float = 1e-4,
        interval: int = 2,
        pull: float = 0.0,
        **method_config: object,
    ) -> list[str]:
        family = toy_family()
        config = DMD2Config.model_validate(
            {
                "dmd_denoising_steps": [1000, 500],
                "generator_update_interval": interval,
                "guidance_convention": "standard",
                "real_score_guidance_scale": 1.0,
            }
            | method_config
        )
        rates = {"student": student_rate, "critic": critic_rate}
        method = toy_method(
            Broken,
            config,
            {"student": True, "teacher": False, "critic": True},
            family=family,
            training={"max_train_steps": steps},
            roles={role: {"optimizer": {"learning_rate": rate}} for role, rate in rates.items()},
        )
        method.pull = pull
        for role in rates:
            for name, module in method.roles[role].modules.items():
                module.load_state_dict(learnt[name])
        losses = [rule for name in ("student_loss", "critic_loss") for rule in rules_of_loss(f"train/{name}")]
        monitor = HealthMonitor([*method.health_rules(), *losses])
        caplog.set_level(logging.WARNING)
        for iteration in range(1, steps + 1):
            logged = train_step(method, toy_batch(family, BATCH, first=BATCH * iteration), iteration)
            monitor.observe(iteration, {f"train/{name}": value for name, value in logged.items()})
        found = [record.getMessage() for record in caplog.records if record.name == "fvd.health"]
        return [message.split("]")[0].removeprefix("[") for message in found]

    return run


# --- real runs ---
@pytest.mark.parametrize("rollout_mode", ["simulate", "data_latent"])
@UPDATE_MODES
def test_a_sound_run_raises_no_alarm(alarms, rollout_mode, update_mode):
    assert alarms(250, rollout_mode=rollout_mode, update_mode=update_mode) == []


@pytest.mark.parametrize(("update_mode", "interval", "steps"), [("joint", 2, 250), ("either_or", 3, 450)])
def test_a_critic_that_does_not_learn_falls_behind(alarms, update_mode, interval, steps):
    """Two critic updates for each of the student, in both modes."""
    changes = {"student_rate": 5e-4, "real_score_guidance_scale": 1.8, "update_mode": update_mode, "interval": interval}
    found = alarms(steps, critic_rate=0.0, **changes)
    assert set(found) == {"critic_behind"}
    assert alarms(steps, critic_rate=5e-3, **changes)[len(found) :] == []


@UPDATE_MODES
def test_a_critic_with_a_huge_rate_explodes(alarms, update_mode):
    assert "critic_exploding" in alarms(150, critic_rate=0.3, update_mode=update_mode)


@UPDATE_MODES
def test_a_scale_of_thirty_looks_like_guidance_twice(alarms, update_mode):
    found = alarms(60, real_score_guidance_scale=30.0, update_mode=update_mode)
    assert found == ["teacher_guided_twice"]


@UPDATE_MODES
def test_a_student_that_is_pulled_to_grey_collapses(alarms, update_mode):
    assert "collapse" in alarms(200, student_rate=3e-3, pull=30.0, update_mode=update_mode)


# --- what a run cannot show in seconds ---
def feed(rule: fvd.HealthRule, rows: list[dict[str, float]]) -> list[int]:
    """The steps at which the rule finds something."""
    asked = {"all": all, "any": any}[rule.asked_with]
    return [
        step for step, row in enumerate(rows) if asked(name in row for name in rule.watches) and rule.observe(row) is not None
    ]


def test_collapse_takes_the_data_where_there_are_data():
    """At high noise the teacher predicts a mean, with less spread than data have: it would miss the fall."""
    falling = [{STUDENT_STD: 2.0 * 0.95**step, TEACHER_STD: 0.1} for step in range(60)]
    assert feed(Collapse(), falling) == []
    found = feed(Collapse(), [row | {DATA_STD: 1.0} for row in falling])
    assert found[0] == 33  # 0.95**23 < 0.5 < 0.95**22, after the median at 9.5


def test_a_student_that_settles_at_the_spread_of_the_data_has_not_collapsed():
    """From random weights it may begin far above."""
    rows = [{STUDENT_STD: 1.0 + 9.0 * 0.9**step, TEACHER_STD: 1.0, DATA_STD: 1.0} for step in range(200)]
    assert feed(Collapse(), rows) == []


def test_a_loss_that_rises_with_the_detail_of_the_samples_is_no_lagging_critic():
    """The teacher's error on the same samples rises as well."""
    growing = [1 + step / 50 for step in range(400)]
    rows = [{CRITIC_LOSS: scale, CRITIC_GAP: 0.7 * scale, NORMALIZER: scale} for scale in growing]
    assert feed(CriticBehind(), rows) == []
    behind = [{CRITIC_LOSS: scale, CRITIC_GAP: 0.7 * scale, NORMALIZER: 1.0} for scale in growing]
    assert feed(CriticBehind(), behind) != []


OF_STUDENT = (STUDENT_STD, TEACHER_STD, CRITIC_GAP, NORMALIZER)


@pytest.mark.parametrize("rule", [CriticBehind, CriticExploding])
def test_what_student_and_critic_say_in_turn_is_put_together(rule):
    """The same figures as in rows that have both give the same finding, in the step in which the last of them comes."""
    sound = {STUDENT_STD: 1.0, CRITIC_GAP: 0.7, NORMALIZER: 1.0, CRITIC_LOSS: 1.0}
    broken = {STUDENT_STD: 1.0, CRITIC_GAP: 7.0, NORMALIZER: 1.0, CRITIC_LOSS: 4.0}
    rows = [sound] * 200 + [broken] * 200
    together = feed(rule(), rows)
    parts = [[name for name in sound if name in OF_STUDENT], [CRITIC_LOSS]]
    in_turn = feed(rule(), [{name: row[name] for name in names} for row in rows for names in parts])
    assert together
    assert sorted({step // 2 for step in in_turn}) == together


def test_dropped_samples_do_not_look_like_collapse():
    """Where all are dropped the moments are 0; and NaN goes into no median."""
    sound = {STUDENT_STD: 1.0, TEACHER_STD: 1.0, CRITIC_LOSS: 1.0, CRITIC_GAP: 0.5, NORMALIZER: 0.6}
    dropped, broken = dict.fromkeys(sound, 0.0) | {CRITIC_LOSS: 1.0}, dict.fromkeys(sound, math.nan)
    rows = [sound] * 60 + [dropped] * 60 + [broken] * 60
    config = DMD2Config(dmd_denoising_steps=(1000.0,))
    for rule in rules(config, samples_a_step=4):
        assert feed(rule, rows) == [], rule.name


def test_all_samples_dropped_and_how_often_in_a_row_ends_the_run():
    rule = AllSamplesDropped(8)
    assert rule.observe({"train/dmd2/non_finite_samples": 7.0}) is None
    assert "all 8 samples" in (rule.observe({"train/dmd2/non_finite_samples": 8.0}) or "")
    monitor = HealthMonitor([rule])
    for step in range(1, 11):
        assert monitor.why_to_end_now(step) is None
        monitor.observe(step, {"train/dmd2/non_finite_samples": 8.0, "train/critic_loss": 1.0})
        monitor.observe(step, {"train/critic_loss": 1.0})  # a step without student is no step in between
    assert "samples_dropped" in str(monitor.why_to_end_now(10))


def test_guidance_is_watched_where_there_is_guidance():
    names = {rule.name for rule in rules(DMD2Config(dmd_denoising_steps=(1000.0,)), samples_a_step=1)}
    assert "teacher_guided_twice" in names
    unguided = DMD2Config(dmd_denoising_steps=(1000.0,), real_score_guidance_scale=0.0)
    assert "teacher_guided_twice" not in {rule.name for rule in rules(unguided, samples_a_step=1)}


RUN = """
recipe: {{family: toy, method: dmd2}}
roles: {{student: {{path: random}}, teacher: {{path: analytic}}, critic: {{path: random}}}}
training: {{output_dir: {out}, max_train_steps: {steps}, train_batch_size: 4, training_state_checkpointing_steps: 0}}
method_config: {{dmd_denoising_steps: [1000, 500], generator_update_interval: 1, real_score_guidance_scale: 0}}
"""


@pytest.mark.parametrize(("steps", "ends_at"), [(50, 10), (3, 3)])
def test_a_teacher_of_nan_ends_the_run_and_keeps_what_it_left(steps, ends_at, tmp_path, monkeypatch, capsys):
    """The student's gradient is 0, not NaN: only the method knows that nothing is learnt."""
    exact = AnalyticNetwork.forward
    monkeypatch.setattr(AnalyticNetwork, "forward", lambda self, *inputs: exact(self, *inputs) * math.nan)
    (tmp_path / "run.yaml").write_text(RUN.format(out=tmp_path / "out", steps=steps), encoding="utf-8")
    assert main(["run", str(tmp_path / "run.yaml")]) == 1
    error = capsys.readouterr().err
    assert "[samples_dropped]" in error
    assert f"step {ends_at}: all 4 samples of the student's update were dropped" in error
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == [f"failed-{ends_at:08d}"]


@pytest.mark.parametrize(("share", "behind"), [(0.98, False), (1.0, False), (1.01, True)])
def test_a_critic_that_is_no_better_than_the_teacher_on_the_students_own_samples_is_behind(share, behind):
    """On the toys, from a finetuned network: 0.98 to 0.99 where it follows, 1.01 to 1.02 at a thousandth of the right rate."""
    row = {
        "train/critic_loss": 1.0,
        "train/dmd2/normalizer": 0.5,
        "train/dmd2/critic_gap": 0.4 * share,
        "train/dmd2/teacher_gap": 0.4,
    }
    rule = CriticBehind()
    findings = [rule.observe(row) for _ in range(60)]
    assert findings[:49] == [None] * 49
    assert (findings[-1] is not None) == behind
