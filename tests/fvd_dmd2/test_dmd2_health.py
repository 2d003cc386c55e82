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
    rules,
)
from fvd_dmd2.method import DMD2Method

BATCH = 32


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
def test_a_sound_run_raises_no_alarm(alarms, rollout_mode):
    assert alarms(250, rollout_mode=rollout_mode) == []


def test_a_critic_that_does_not_learn_falls_behind(alarms):
    found = alarms(250, critic_rate=0.0, student_rate=5e-4, real_score_guidance_scale=1.8)
    assert set(found) == {"critic_behind"}
    assert alarms(250, critic_rate=5e-3, student_rate=5e-4, real_score_guidance_scale=1.8)[len(found) :] == []


def test_a_critic_with_a_huge_rate_explodes(alarms):
    assert "critic_exploding" in alarms(150, critic_rate=0.3)


def test_a_scale_of_thirty_looks_like_guidance_twice(alarms):
    found = alarms(60, real_score_guidance_scale=30.0)
    assert found == ["teacher_guided_twice"]


def test_a_student_that_is_pulled_to_grey_collapses(alarms):
    assert "collapse" in alarms(200, student_rate=3e-3, pull=30.0)


# --- what a run cannot show in seconds ---
def feed(rule: fvd.HealthRule, rows: list[dict[str, float]]) -> list[int]:
    """The steps at which the rule finds something."""
    return [
        step for step, row in enumerate(rows) if all(name in row for name in rule.watches) and rule.observe(row) is not None
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
def test_a_teacher_of_nan_ends_the_run_with_a_checkpoint(steps, ends_at, tmp_path, monkeypatch, capsys):
    """The student's gradient is 0, not NaN: only the method knows that nothing is learnt."""
    exact = AnalyticNetwork.forward
    monkeypatch.setattr(AnalyticNetwork, "forward", lambda self, *inputs: exact(self, *inputs) * math.nan)
    (tmp_path / "run.yaml").write_text(RUN.format(out=tmp_path / "out", steps=steps), encoding="utf-8")
    assert main(["run", str(tmp_path / "run.yaml")]) == 1
    error = capsys.readouterr().err
    assert "[samples_dropped]" in error
    assert f"step {ends_at}: all 4 samples of the student's update were dropped" in error
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == [f"step-{ends_at:08d}"]
