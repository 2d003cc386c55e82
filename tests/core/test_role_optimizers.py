"""How each role is optimized: who says it, what a run file may say, where older keys go, and what it comes to in a run."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from small_video import SmallVideoAdapter, small_raw_batch, small_roles, small_run
from torch.nn import functional

import fvd
from fvd.cli.main import main
from fvd.config.load import LoadedRun, load_run_file
from fvd.config.models import MethodConfig
from fvd.config.optimization import EmaConfig, EmaSettings, OptimizerConfig, RoleDefaults, takes_setting
from fvd.inference import open_run
from fvd.plugins import PluginOptions, registry
from fvd.rundir import RunDirectory
from fvd.signals import StopSignals
from fvd.testing import fake_dist, installed_in
from fvd.testing.steps import train_step
from fvd.trackers.base import TrackerGroup
from fvd.trainer import Trainer


class KnowingConfig(MethodConfig):
    """A method that knows its student."""

    def role_defaults(self, role: str) -> RoleDefaults:
        if role != "student":
            return RoleDefaults()
        optimizer = OptimizerConfig(learning_rate=3e-3, betas=(0.0, 0.3), min_lr_ratio=0.3, lr_scheduler="cosine")
        return RoleDefaults(optimizer=optimizer, ema=EmaConfig(decay=0.33, start_step=3))


class Chase(fvd.Method):
    """The critic learns from the data at every step, the student from the critic at every ``every``-th."""

    role_names = ("student", "critic")
    every = 5

    def roles_to_update(self, iteration: int) -> list[str]:
        return ["student", "critic"] if iteration % self.every == 0 else ["critic"]

    def single_train_step(self, batch, iteration, *, rng) -> Iterator[fvd.Loss]:
        prepared = self.adapter.prepare_batch(batch, latents_source="data")
        t, noise = 1000 * rng.rand(), rng.randn_like(prepared.latents)
        x_t = self.adapter.add_noise(prepared.latents, noise, t)
        predictions = {role: self.adapter.predict(self.roles[role], x_t, t, prepared.cond) for role in self.role_names}
        goals = {
            "student": predictions["critic"].detach(),
            "critic": self.adapter.training_target(prepared.latents, noise, t),
        }
        for role in self.roles_to_update(iteration):
            yield fvd.Loss(role, functional.mse_loss(predictions[role], goals[role]), role=role)


def run_of(config: MethodConfig | None = None, *, training=None, **roles: dict[str, object]) -> fvd.RunConfig:
    """A run with a student and a critic. roles: what the file says of each, besides its path."""
    run = small_run(small_roles({"student": True, "critic": True}), config or MethodConfig(), training=training)
    said = {name: fvd.RoleConfig.model_validate({"path": "x", "trainable": True, **roles.get(name, {})}) for name in run.roles}
    return run.model_copy(update={"roles": said})


def chase(config: MethodConfig | None = None, *, training=None, every: int = 5, **said) -> Chase:
    roles = small_roles({"student": True, "critic": True})
    run = run_of(config, training=training, **said)
    method = Chase(run=run, roles=roles, adapter=SmallVideoAdapter())
    method.every = every
    method.build_optimizers()
    return method


# --- who says it ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("config", "training", "role", "expected"),
    [
        (None, {}, {}, 1e-5),  # training's default
        (KnowingConfig(), {}, {}, 3e-3),  # the method's for this role
        (KnowingConfig(), {"learning_rate": 2e-3}, {}, 2e-3),  # training, in the file
        (KnowingConfig(), {"learning_rate": 1e-5}, {}, 1e-5),  # in the file, if only its default
        (KnowingConfig(), {"learning_rate": 2e-3}, {"learning_rate": 1e-3}, 1e-3),  # the role, in the file
        (KnowingConfig(), {"learning_rate": 2e-3}, {"learning_rate": 0}, 0.0),  # an explicit 0 says something
        (KnowingConfig(), {"learning_rate": 0}, {}, 0.0),
        (KnowingConfig(), {"learning_rate": 2e-3}, {"learning_rate": None}, 2e-3),  # null does not
        (KnowingConfig(), {}, {"betas": "0.1, 0.2"}, 3e-3),  # key by key
    ],
)
def test_who_counts_more(config, training, role, expected):
    run = run_of(config, training=training, student={"optimizer": role})
    assert run.optimizer_of("student").learning_rate == expected


def test_every_key_of_a_role_has_its_own_way():
    run = run_of(
        KnowingConfig(),
        training={"betas": [0.2, 0.2], "optimizer": "Adam", "min_lr_ratio": 0.2, "optimizer_arguments": {"amsgrad": True}},
        student={"optimizer": {"min_lr_ratio": 0, "eps": 0.5}},
    )
    student, critic = run.optimizer_of("student"), run.optimizer_of("critic")
    assert (student.name, student.learning_rate, student.betas, student.eps) == ("Adam", 3e-3, (0.2, 0.2), 0.5)
    assert (student.min_lr_ratio, student.lr_scheduler, student.arguments) == (0.0, "cosine", {"amsgrad": True})
    assert (critic.learning_rate, critic.min_lr_ratio, critic.lr_scheduler, critic.eps) == (1e-5, 0.2, "constant", 1e-8)


@pytest.mark.parametrize(
    ("config", "said", "expected"),
    [
        (None, None, None),
        (None, False, None),
        (None, True, EmaSettings(decay=0.999, start_step=0)),
        (None, {"decay": 0}, EmaSettings(decay=0.0)),
        (KnowingConfig(), None, EmaSettings(decay=0.33, start_step=3)),
        (KnowingConfig(), True, EmaSettings(decay=0.33, start_step=3)),
        (KnowingConfig(), {"start_step": 0}, EmaSettings(decay=0.33, start_step=0)),
        (KnowingConfig(), False, None),
    ],
)
def test_who_says_the_ema(config, said, expected):
    assert run_of(config, student={"ema": said}).ema_of("student") == expected


def test_a_role_that_the_file_does_not_name_has_settings_too():
    """A method may make roles itself."""
    run = run_of(KnowingConfig(), training={"learning_rate": 2e-3})
    assert run.optimizer_of("discriminator").learning_rate == 2e-3
    assert run.ema_of("discriminator") is None


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor", "NewIn2030"])
def test_what_is_written_out_means_the_same(name):
    """Also where the method's, or training's, defaults have changed meanwhile."""
    said = {"student": {"optimizer": {"name": name, "min_lr_ratio": 0}}, "critic": {"ema": {"decay": 0.5}}}
    run = run_of(KnowingConfig(), training={"learning_rate": 2e-3}, **said)
    whole = run.with_optimization_written_out()
    document = json.loads(json.dumps(whole.as_document()))
    again = fvd.RunConfig(
        recipe=run.recipe,
        roles={role: fvd.RoleConfig.model_validate(section) for role, section in document["roles"].items()},
        training=fvd.TrainingConfig.model_validate({**document["training"], "learning_rate": 9.0, "max_grad_norm": 9.0}),
        pipeline_config=run.pipeline_config,
        method_config=MethodConfig(),
    )
    for role in ("student", "critic"):
        before, after = asdict(run.optimizer_of(role)), asdict(again.optimizer_of(role))
        assert {key: after[key] for key in after if takes_setting(before["name"], key)} == {
            key: before[key] for key in before if takes_setting(before["name"], key)
        }
        assert again.ema_of(role) == run.ema_of(role)
    assert again.with_optimization_written_out().roles == whole.roles


# --- what it comes to ----------------------------------------------------------------------------------------------------
def test_each_role_gets_its_own():
    method = chase(
        KnowingConfig(),
        training={"max_grad_norm": 0.25},
        critic={"optimizer": {"name": "SGD", "learning_rate": 0.5, "max_grad_norm": 0, "arguments": {"momentum": 0.5}}},
    )
    student, critic = method.roles["student"], method.roles["critic"]
    assert isinstance(student.optimizers["main"], torch.optim.AdamW)
    assert student.optimizers["main"].param_groups[0]["betas"] == (0.0, 0.3)
    assert student.max_grad_norm == 0.25
    assert student.ema.settings == EmaSettings(decay=0.33, start_step=3)
    assert isinstance(critic.optimizers["main"], torch.optim.SGD)
    assert critic.optimizers["main"].param_groups[0]["momentum"] == 0.5
    assert (critic.max_grad_norm, critic.ema) == (0.0, None)


def rates(method: Chase, role: str, steps: int) -> list[float]:
    """The learning rate at each of the role's own updates."""
    used = []
    for iteration in range(1, steps + 1):
        if role in method.roles_to_update(iteration):
            used.append(method.roles[role].optimizers["main"].param_groups[0]["lr"])
        train_step(method, small_raw_batch(2, seed=iteration), iteration)
    return used


def test_a_warm_up_counts_the_roles_own_updates():
    said = {"optimizer": {"learning_rate": 1.1, "lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 10}}
    method = chase(training={"max_train_steps": 60}, student=said, critic=said)
    assert rates(method, "student", 60) == pytest.approx([0.1 * update for update in range(1, 11)] + [1.1, 1.1])
    assert (method.roles["student"].updates, method.roles["critic"].updates) == (12, 60)


def test_the_end_of_the_run_is_the_end_of_every_roles_cosine():
    cosine = {"lr_scheduler": "cosine", "learning_rate": 1.0, "max_train_steps": 40, "weight_decay": 0}
    method = chase(training=cosine)
    used = rates(method, "student", 40)
    assert used == pytest.approx([0.5 * (1 + math.cos(math.pi * update / 8)) for update in range(8)])
    for role in ("student", "critic"):
        assert method.roles[role].optimizers["main"].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_an_average_counts_the_roles_own_updates():
    method = chase(training={"learning_rate": 1e-2}, student={"ema": {"decay": 0.9, "start_step": 2}})
    student = method.roles["student"]

    def averaged() -> bool:
        return any(not torch.equal(student.ema.tensors[name], p) for name, p in student.ema.parameters.items())

    seen = []
    for iteration in range(1, 17):
        train_step(method, small_raw_batch(2, seed=iteration), iteration)
        seen.append(averaged())
    assert seen == [False] * 14 + [True] * 2  # the third update is that of step 15


def trainer_of(method: Chase) -> Trainer:
    runtime = SimpleNamespace(
        config=method.run,
        roles=method.roles,
        adapter=method.adapter,
        method=method,
        device=torch.device("cpu"),
        start_step=0,
        resume_from=None,
    )
    return Trainer(runtime, TrackerGroup({}), StopSignals())


def test_each_role_is_clipped_to_its_own_norm():
    """SGD at rate 1: the step is the gradient, as long as the clip lets it be."""
    sgd = {"optimizer": "SGD", "learning_rate": 1.0, "weight_decay": 0, "max_grad_norm": 0}
    method = chase(training=sgd, every=1, student={"optimizer": {"max_grad_norm": 1e-3}})
    before = {role: [p.detach().clone() for p in method.roles[role].trainable_parameters()] for role in method.role_names}
    trainer = trainer_of(method)
    trainer.step = 1
    metrics = trainer.train_step(small_raw_batch(4, seed=seed) for seed in itertools.count())
    for role, allowed in (("student", 1e-3), ("critic", metrics["grad_norm/critic"])):
        after = method.roles[role].trainable_parameters()
        moved = sum((a - b).square().sum() for a, b in zip(after, before[role], strict=True)).sqrt()
        assert moved.item() == pytest.approx(allowed, rel=1e-4)


# --- what a run file may say ---------------------------------------------------------------------------------------------
LIGHT = """
    import fvd

    MOVED = {
        "critic_rate": fvd.MovedKey(to="roles.critic.optimizer.learning_rate", values={0: None}),
        "critic_betas": fvd.MovedKey(to="roles.critic.optimizer.betas"),
        "use_ema": fvd.MovedKey(to="roles.student.ema"),
        "ema_decay": fvd.MovedKey(to="roles.student.ema.decay"),
        "ema_start_step": fvd.MovedKey(to="roles.student.ema.start_step"),
        "old_strength": fvd.MovedKey(to="strength"),
    }

    @fvd.hookimpl
    def fvd_methods():
        roles = {name: fvd.RoleNeeds(trainable=name != "teacher") for name in ("student", "critic", "teacher")}
        return [fvd.MethodSpec(name="chase", target="m.c:F", config="m.c:C", roles=roles, needs=set(), moved_keys=MOVED)]
"""
CONFIG = """
    import fvd

    class C(fvd.MethodConfig):
        strength: float = 1.0

        def role_defaults(self, role):
            betas = (0.0, 0.9) if role == "critic" else None
            return fvd.RoleDefaults(optimizer=fvd.OptimizerConfig(betas=betas, max_grad_norm=self.strength))
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """A run file of the method chase on the family toy; keywords are added to its sections."""
    find = registry.find_candidates
    monkeypatch.setattr(registry, "find_candidates", lambda: [c for c in find() if c.distribution in ("fvd-core", "acme")])
    fake_dist(tmp_path, "acme", entry_points={"chase": "m.plugin"}, modules={"m": "", "m.plugin": LIGHT, "m.c": CONFIG})

    def load(*, training=None, method_config=None, **roles) -> LoadedRun:
        document = {
            "recipe": {"family": "toy", "method": "chase"},
            "roles": {name: {"path": "random", **roles.get(name, {})} for name in ("student", "critic", "teacher")},
            "training": {"output_dir": str(tmp_path / "out"), "max_train_steps": 10, **(training or {})},
            "method_config": method_config or {},
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        return load_run_file(path)

    with installed_in(tmp_path):
        yield load


def found(loaded: LoadedRun) -> dict[str, tuple[str, str]]:
    """key -> (severity, message); notes of other checks aside."""
    return {problem.key: (problem.severity, problem.message) for problem in loaded.problems if problem.severity != "note"}


def test_what_the_file_leaves_open_is_written_out(load):
    config = load(training={"learning_rate": 0.5}, student={"ema": True}, method_config={"strength": 7.0}).require()
    student, critic, teacher = (config.roles[name] for name in ("student", "critic", "teacher"))
    assert (student.optimizer.learning_rate, student.optimizer.betas) == (0.5, (0.9, 0.999))
    assert (critic.optimizer.learning_rate, critic.optimizer.betas) == (0.5, (0.0, 0.9))
    assert critic.optimizer.max_grad_norm == 7.0
    assert (student.ema, critic.ema) == (EmaConfig(decay=0.999, start_step=0), False)
    assert (teacher.optimizer, teacher.ema) == (None, None)


def test_the_effective_run_file_means_the_same(load, tmp_path):
    config = load(student={"optimizer": {"name": "SGD"}, "ema": {"decay": 0.5}}, training={"lr_scheduler": "cosine"}).require()
    assert config.roles["student"].optimizer.betas is None  # SGD has none, and a file that says some is refused
    effective = tmp_path / "effective.yaml"
    effective.write_text(yaml.safe_dump(config.as_document()), encoding="utf-8")
    loaded = load_run_file(effective)
    assert found(loaded) == {}
    again = loaded.require()
    for role in ("student", "critic"):
        assert again.optimizer_of(role) == config.optimizer_of(role)
        assert again.ema_of(role) == config.ema_of(role)


@pytest.mark.parametrize(
    ("said", "key", "severity", "words"),
    [
        ({"student": {"optimizer": {"learning_rat": 1}}}, "roles.student.optimizer.learning_rat", "error", "'learning_rate'"),
        ({"student": {"optimizer": {"betas": [0.9]}}}, "roles.student.optimizer.betas", "error", "needs two numbers"),
        ({"student": {"optimizer": {"lr_power": -1}}}, "roles.student.optimizer.lr_power", "error", "greater than or equal"),
        ({"student": {"optimizer": 3}}, "roles.student.optimizer", "error", "must be a mapping"),
        ({"student": {"ema": {"decay": 1}}}, "roles.student.ema.decay", "error", "less than 1"),
        ({"student": {"ema": {"decy": 0.9}}}, "roles.student.ema.decy", "error", "'decay'"),
        ({"student": {"optimizer": {"name": "LBFGS"}}}, "roles.student.optimizer.name", "error", "computes the loss several"),
        ({"training": {"optimizer": "SparseAdam"}}, "training.optimizer", "error", "sparse"),
        ({"student": {"optimizer": {"name": "AdmW"}}}, "roles.student.optimizer.name", "warning", "did you mean 'AdamW'"),
        ({"training": {"optimizer": "NewIn2030"}}, "training.optimizer", "warning", "knows no optimizer 'NewIn2030'"),
        (
            {"student": {"optimizer": {"name": "SGD", "betas": [0, 0.9]}}},
            "roles.student.optimizer.betas",
            "error",
            "SGD takes no betas",
        ),
        ({"training": {"optimizer": "SGD", "eps": 1e-6}}, "training.eps", "error", "SGD takes no eps"),
        (
            {"student": {"optimizer": {"name": "SGD", "arguments": {"momentun": 0.9}}}},
            "roles.student.optimizer.arguments.momentun",
            "error",
            "did you mean 'momentum'",
        ),
        (
            {"training": {"optimizer_arguments": {"lr": 1}}},
            "training.optimizer_arguments.lr",
            "error",
            "has a key of its own",
        ),
        (
            {"training": {"optimizer_arguments": {"amsgrad": 1}}},
            "training.optimizer_arguments.amsgrad",
            "error",
            "amsgrad of AdamW must be true or false, got 1",
        ),
        (
            {"training": {"optimizer": "Adadelta", "optimizer_arguments": {"rho": "x"}}},
            "training.optimizer_arguments.rho",
            "error",
            "rho of Adadelta must be a number, got x",
        ),
        (
            {"student": {"optimizer": {"name": "Rprop", "arguments": {"etas": [0.5]}}}},
            "roles.student.optimizer.arguments.etas",
            "error",
            "etas of Rprop must be a list of 2 numbers, got [0.5]",
        ),
        (
            {"student": {"optimizer": {"arguments": {"differentiable": True}}}},
            "roles.student.optimizer.arguments.differentiable",
            "error",
            "cannot be true",
        ),
        (
            {"training": {"optimizer_arguments": {"momentum": 0.9}}, "student": {"optimizer": {"name": "SGD"}}},
            "training.optimizer_arguments.momentum",
            "error",
            "the optimizer AdamW takes no momentum",
        ),
        ({"training": {"optimizer": "Muon", "max_train_steps": 1}}, "training.optimizer", "warning", "two-dimensional"),
        ({"teacher": {"optimizer": {"eps": 1}}}, "roles.teacher.optimizer", "error", "the teacher is frozen"),
        ({"teacher": {"ema": True}}, "roles.teacher.ema", "error", "the teacher is frozen"),
        ({"student": {"path": None}}, "roles.student.path", "error", "must be text"),
        ({"student": {"path": ""}}, "roles.student.path", "error", "is required and not given"),
    ],
)
def test_what_is_wrong_is_said_at_its_key(load, said, key, severity, words):
    problems = found(load(**said))
    assert problems[key][0] == severity
    assert words in problems[key][1]
    assert len(problems) == 1


@pytest.mark.parametrize(
    "said",
    [
        {
            "training": {"betas": [0, 0.9], "eps": 1e-6},
            "student": {"optimizer": {"name": "SGD"}},
        },  # the critic takes them
        {"student": {"optimizer": {"name": "NewIn2030", "betas": [0, 0.9], "arguments": {"power": 3}}}},  # nobody knows it here
        {"teacher": {"ema": False}},
        {"student": {"optimizer": None, "ema": None}},
        {"training": {"optimizer_arguments": {"foreach": True, "amsgrad": True, "fused": None}}},
        {"student": {"optimizer": {"name": "Adafactor", "arguments": {"eps": [None, 0.5]}}}},
        {
            "training": {"optimizer_arguments": {"momentum": 0.9}, "optimizer": "SGD"},
            "critic": {"optimizer": {"arguments": {}}},
        },
    ],
)
def test_what_is_not_wrong(load, said):
    assert [problem for problem in load(**said).problems if problem.severity == "error"] == []


@pytest.mark.parametrize("critic", [{}, {"optimizer": {"name": "SGD"}}])
def test_one_misplaced_argument_of_all_roles_is_one_error(load, critic):
    (problem,) = load(training={"optimizer_arguments": {"lr": 1}}, critic=critic).errors
    assert (problem.key, problem.cure) == ("training.optimizer_arguments.lr", "Write training.learning_rate.")
    (problem,) = load(critic={"optimizer": {"arguments": {"lr": 1}}}).errors
    assert problem.cure == "Write roles.critic.optimizer.learning_rate."


def test_eight_bit_is_known_and_the_lack_of_its_library_too(load, monkeypatch):
    monkeypatch.setattr("fvd.config.optimizers.find_spec", lambda name: None)
    loaded = load(training={"optimizer": "AdamW8bit"})
    assert found(loaded) == {
        "training.optimizer": ("warning", "the optimizer AdamW8bit is of the library bitsandbytes, which is not installed here")
    }
    assert any("fvd-core[8bit]" in problem.cure for problem in loaded.problems)


# --- older keys ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("section", ["training", "method_config"])
def test_older_keys_move_to_a_role(load, section, tmp_path):
    loaded = load(**{section: {"critic_rate": "2e-3", "critic_betas": "0.1, 0.2", "old_strength": 4}})
    config = loaded.require()
    critic, student = config.optimizer_of("critic"), config.optimizer_of("student")
    assert (critic.learning_rate, critic.betas) == (2e-3, (0.1, 0.2))
    assert (student.learning_rate, student.betas) == (1e-5, (0.9, 0.999))
    assert config.method_config.strength == 4
    assert found(loaded)[f"{section}.critic_rate"] == (
        "warning",
        "is accepted, but its place is roles.critic.optimizer.learning_rate",
    )
    lines = (tmp_path / "run.yaml").read_text(encoding="utf-8").splitlines()
    for problem in loaded.problems:
        if problem.key == f"{section}.critic_rate":
            assert lines[problem.line - 1].strip().startswith("critic_rate:")


def test_a_wrong_value_is_reported_where_it_was_written(load, tmp_path):
    (problem,) = load(training={"critic_rate": "fast"}).errors
    assert problem.key == "roles.critic.optimizer.learning_rate"
    lines = (tmp_path / "run.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[problem.line - 1].strip() == "critic_rate: fast"


def test_an_older_key_that_says_nothing_leaves_the_default(load):
    assert load(training={"critic_rate": 0, "learning_rate": 0.5}).require().optimizer_of("critic").learning_rate == 0.5


def test_the_new_place_wins(load):
    loaded = load(training={"critic_rate": 2e-3}, critic={"optimizer": {"learning_rate": 1e-3}})
    assert loaded.require().optimizer_of("critic").learning_rate == 1e-3
    assert found(loaded)["training.critic_rate"][1] == (
        "has no effect: roles.critic.optimizer.learning_rate is given too and wins"
    )


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        ({"use_ema": True}, EmaSettings()),
        ({"use_ema": False}, None),
        ({"use_ema": True, "ema_decay": 0.5, "ema_start_step": 7}, EmaSettings(decay=0.5, start_step=7)),
        ({"use_ema": False, "ema_decay": 0.5}, None),
        ({"ema_decay": 0.5}, EmaSettings(decay=0.5)),
    ],
)
def test_older_keys_of_an_ema(load, old, expected):
    loaded = load(training=old)
    assert loaded.require().ema_of("student") == expected
    assert set(found(loaded)) == {f"training.{key}" for key in old}


def test_a_role_that_is_missing_is_not_made_by_an_older_key(load, tmp_path):
    load(training={"critic_rate": 2e-3})
    path = tmp_path / "run.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    del document["roles"]["critic"]
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    problems = found(load_run_file(path))
    assert problems["training.critic_rate"] == ("warning", "has no effect: the file names no role critic")
    assert problems["roles"] == ("error", "method chase needs the role 'critic'")


@pytest.mark.parametrize("to", ["training.seed", "roles.critic", "roles..x", "strength.inner"])
def test_a_moved_key_goes_to_the_method_or_a_role(to):
    with pytest.raises(ValueError, match="must be a key of method_config or roles"):
        fvd.MovedKey(to=to)


# --- through the command line --------------------------------------------------------------------------------------------
def write_toy_run(folder: Path, output: str, *, student=None, **training: object) -> Path:
    document = {
        "recipe": {"family": "toy", "method": "toy"},
        "roles": {"student": {"path": "random", **(student or {})}},
        "training": {
            "output_dir": str(folder / output),
            "max_train_steps": 4,
            "train_batch_size": 8,
            "learning_rate": 0.01,
            **training,
        },
    }
    path = folder / f"{output}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def exported(capsys, run_dir: Path, out: Path, *options: str) -> tuple[dict[str, torch.Tensor], str, str]:
    """The exported weights, what the provenance says of them, and what was printed."""
    assert main(["export", str(run_dir), "--out", str(out), *options]) == 0
    provenance = json.loads((out / "fvd-export.json").read_text(encoding="utf-8"))
    state = torch.load(next(out.glob("*.pt")), weights_only=True)
    return state, provenance["weights"], capsys.readouterr().out


def test_sample_and_export_take_the_average_where_there_is_one(tmp_path, capsys):
    averaged = write_toy_run(tmp_path, "averaged", student={"ema": {"decay": 0.5}})
    assert main(["run", str(averaged)]) == 0
    run_dir = tmp_path / "averaged"
    default, said, printed = exported(capsys, run_dir, tmp_path / "default")
    assert (said, "ema weights" in printed) == ("ema", True)
    ema, said, _ = exported(capsys, run_dir, tmp_path / "ema", "--weights", "ema")
    raw, said_of_raw, printed = exported(capsys, run_dir, tmp_path / "raw", "--weights", "raw")
    assert (said, said_of_raw, "raw weights" in printed) == ("ema", "raw", True)
    assert all(torch.equal(default[name], ema[name]) for name in ema)
    assert any(not torch.equal(ema[name], raw[name]) for name in ema)

    sample = ["sample", str(run_dir), "--prompt", "mode 1", "--steps", "2", "--out", str(tmp_path / "x.mp4")]
    for options, words in (([], "ema weights"), (["--weights", "raw"], "raw weights")):
        assert main([*sample, *options]) == 0
        assert words in capsys.readouterr().out


def test_without_an_average_the_weights_are_those_trained(tmp_path, capsys):
    assert main(["run", str(write_toy_run(tmp_path, "plain"))]) == 0
    assert exported(capsys, tmp_path / "plain", tmp_path / "out")[1] == "raw"
    assert main(["export", str(tmp_path / "plain"), "--out", str(tmp_path / "ema"), "--weights", "ema"]) == 1
    assert "no average (EMA) of role student" in capsys.readouterr().err
    assert not (tmp_path / "ema").exists()


def test_a_stopped_run_goes_on_to_the_same_average(tmp_path, capsys):
    """6 steps at once, and 3 and 3: weights and average bit for bit."""
    settings = {"student": {"ema": {"decay": 0.5, "start_step": 1}}, "lr_scheduler": "constant"}
    assert main(["run", str(write_toy_run(tmp_path, "straight", max_train_steps=6, **settings))]) == 0
    assert main(["run", str(write_toy_run(tmp_path, "halting", max_train_steps=3, **settings))]) == 0
    assert main(["run", str(write_toy_run(tmp_path, "halting", max_train_steps=6, **settings))]) == 0
    for weights in ("raw", "ema"):
        one, other = (
            exported(capsys, tmp_path / name, tmp_path / f"{name}-{weights}", "--weights", weights)[0]
            for name in ("straight", "halting")
        )
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_may_take_up_and_drop_an_average(tmp_path, capsys):
    for steps, ema in ((2, False), (4, {"decay": 0.9}), (6, False)):
        assert main(["run", str(write_toy_run(tmp_path, "x", max_train_steps=steps, student={"ema": ema}))]) == 0
        run = open_run(tmp_path / "x", device=torch.device("cpu"), options=PluginOptions())
        assert run.checkpoint.averaged_roles == (["student"] if ema else [])


@pytest.mark.parametrize(
    ("student", "training", "shown"),
    [
        ({"optimizer": {"learning_rate": 0.02}}, {}, "roles.student.optimizer.learning_rate: 0.01 -> 0.02"),
        ({}, {"learning_rate": 0.03}, "training.learning_rate: 0.01 -> 0.03"),
        ({"optimizer": {"name": "SGD"}}, {}, "roles.student.optimizer.name: 'AdamW' -> 'SGD'"),
    ],
)
def test_a_run_does_not_go_on_with_another_optimizer(tmp_path, capsys, student, training, shown):
    assert main(["run", str(write_toy_run(tmp_path, "x"))]) == 0
    assert main(["run", str(write_toy_run(tmp_path, "x", student=student, max_train_steps=5, **training))]) == 1
    assert shown in capsys.readouterr().err


def test_what_training_says_and_every_role_says_itself_is_no_change(tmp_path):
    own = {"optimizer": {"learning_rate": 0.01}}
    assert main(["run", str(write_toy_run(tmp_path, "x", student=own, learning_rate=0.5))]) == 0
    assert main(["run", str(write_toy_run(tmp_path, "x", student=own, learning_rate=0.25, max_train_steps=5))]) == 0


def test_an_effective_run_file_from_before_roles_said_their_optimizer(tmp_path):
    """Its roles are completed from what its training section says."""
    assert main(["run", str(write_toy_run(tmp_path, "x"))]) == 0
    path = tmp_path / "x" / "checkpoints" / "step-00000004" / "checkpoint.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    for key in ("optimizer", "ema"):
        del description["config"]["roles"]["student"][key]
    for key in ("optimizer", "eps", "optimizer_arguments"):
        del description["config"]["training"][key]
    path.write_text(json.dumps(description), encoding="utf-8")
    assert main(["run", str(write_toy_run(tmp_path, "x", max_train_steps=5))]) == 0


def test_an_optimizer_that_cannot_be_made_ends_the_run_before_weights_are_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fvd.testing.toy.family.ToyFamily.load_role", lambda *args: pytest.fail("weights were loaded"))
    run_file = write_toy_run(tmp_path, "x", student={"optimizer": {"name": "AdamX"}})
    assert main(["run", str(run_file)]) == 1
    error = capsys.readouterr().err
    assert "roles.student.optimizer: torch.optim has no optimizer 'AdamX', did you mean" in error.replace(" (did", ", did")
    assert not RunDirectory(tmp_path / "x").has_steps()
