"""`fvd check --explain`: every key of a run with its value, where it comes from, and what it means."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

from fvd.accounting import Passes, forward_equivalents
from fvd.cli.main import main
from fvd.config.load import load_run_file
from fvd.config.meaning import Explanation, Knob, explain_run
from fvd.testing import loaded_modules

TOY = """\
recipe: {family: toy, method: toy}
roles:
  student:
    path: random
training:
  output_dir: outputs/x
  max_train_steps: 10
  train_batch_size: 4
pipeline_config:
  flow_shift: 3
"""

DISTILLED = """\
recipe: {family: toy, method: dmd2}
roles:
  student: {path: random}
  teacher: {path: analytic}
  critic: {path: random}
training: {output_dir: outputs/x, max_train_steps: 10}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def explain(folder: Path, text: str, overrides: Sequence[str] = ()) -> Explanation:
    return explain_run(load_run_file(write(folder, text), overrides))


def knobs(explanation: Explanation) -> dict[str, Knob]:
    return {knob.key: knob for each in explanation.sections.values() for knob in each}


def test_every_key_of_the_run_is_there_with_its_effective_value(tmp_path):
    """Against the effective run file, which is what a run is made from."""
    loaded = load_run_file(write(tmp_path, DISTILLED))
    document = loaded.require().as_document()
    found = knobs(explain_run(loaded))
    for section in ("training", "pipeline_config", "method_config"):
        for key, value in document[section].items():
            inner = value if isinstance(value, dict) and f"{section}.{key}" not in found else {None: value}
            for name, expected in inner.items():
                assert found[f"{section}.{key}" + (f".{name}" if name else "")].value == expected
    student = document["roles"]["student"]
    for key, value in student["optimizer"].items():
        assert found[f"roles.student.optimizer.{key}"].value == value
    assert {key: found[f"roles.student.ema.{key}"].value for key in student["ema"]} == student["ema"]
    assert found["roles.student.trainable"].value is True
    assert found["roles.teacher.trainable"].value is False
    assert "roles.teacher.optimizer.learning_rate" not in found


def test_sources(tmp_path):
    (tmp_path / "other.yaml").write_text("\nflow_shift: 2\n", encoding="utf-8")
    text = TOY.replace("pipeline_config:\n  flow_shift: 3\n", f"pipeline_config_path: {tmp_path / 'other.yaml'}\n")
    found = knobs(explain(tmp_path, text, ["training.seed=5"]))
    sources = {key: found[key].source for key in ("training.max_train_steps", "training.seed", "training.data_path")}
    assert sources == {"training.max_train_steps": "line 7", "training.seed": "--set", "training.data_path": "default"}
    assert found["pipeline_config.flow_shift"].source == "other.yaml:2"
    assert found["roles.student.path"].source == "line 4"
    assert found["roles.student.family"].source == "recipe.family"
    assert found["roles.student.trainable"].source == "method toy"


@pytest.mark.parametrize(
    ("roles", "training", "value", "source", "for_whom"),
    [
        ("", "", 4e-7, "default of dmd2", "no effect: every trained role has its own"),
        ("", ", learning_rate: 3e-6", 3e-6, "line 6, training", "for student, critic"),
        (", optimizer: {learning_rate: 1e-6}", ", learning_rate: 3e-6", 1e-6, "line 5", "for student"),
        (", optimizer: {learning_rate: null}", "", 4e-7, "default of dmd2", "no effect: every trained role has its own"),
        (", optimizer: {learning_rate: 0}", "", 0.0, "line 5", "no effect: every trained role has its own"),
    ],
)
def test_an_optimizers_four_places(tmp_path, roles, training, value, source, for_whom):
    text = DISTILLED.replace("critic: {path: random", "critic: {path: random" + roles).replace(
        "steps: 10", "steps: 10" + training
    )
    found = knobs(explain(tmp_path, text))
    knob = found["roles.critic.optimizer.learning_rate"]
    assert (knob.value, knob.source) == (value, source)
    assert found["training.learning_rate"].meaning == for_whom
    assert found["roles.critic.optimizer.eps"].source == "default"


def test_a_whole_optimizer_by_set(tmp_path):
    found = knobs(explain(tmp_path, DISTILLED, ["roles.critic.optimizer={name: SGD, learning_rate: 1e-3}"]))
    assert found["roles.critic.optimizer.learning_rate"].source == "--set"
    betas = found["roles.critic.optimizer.betas"]
    assert (betas.value, betas.meaning) == (None, "no effect: SGD has none")
    assert found["roles.student.optimizer.betas"].value == [0.0, 0.999]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", {"ema.decay": (0.99, "default of dmd2"), "ema.start_step": (40, "default of dmd2")}),
        (", ema: {decay: 0.9}", {"ema.decay": (0.9, "line 3"), "ema.start_step": (40, "default of dmd2")}),
        (", ema: true", {"ema.decay": (0.99, "default of dmd2"), "ema.start_step": (40, "default of dmd2")}),
        (", ema: false", {"ema": (False, "line 3")}),
    ],
)
def test_an_average(tmp_path, written, expected):
    found = knobs(explain(tmp_path, DISTILLED.replace("student: {path: random", "student: {path: random" + written)))
    prefix = "roles.student."
    averages = {key.removeprefix(prefix): knob for key, knob in found.items() if key.startswith(f"{prefix}ema")}
    assert {key: (knob.value, knob.source) for key, knob in averages.items()} == expected


def test_an_average_in_words(tmp_path):
    found = knobs(explain(tmp_path, DISTILLED))
    assert found["roles.student.ema.decay"].meaning == "average = 0.99 average + 0.01 weights at each update of the student"
    assert found["roles.student.ema.start_step"].meaning == "until update 40 of the student the average is the weights"
    assert found["roles.critic.ema"].meaning == "no average of the weights is kept"


def test_the_ladders_values_are_the_ladders(tmp_path):
    found = knobs(explain(tmp_path, DISTILLED, ["training.validation_guidance_scale=7"]))
    guidance = found["training.validation_guidance_scale"]
    assert (guidance.value, guidance.source) == (1.0, "ladder of dmd2")  # what the file says has no effect
    assert found["training.validation_sampling_steps"].value == [4]
    assert found["pipeline_config.sampler_kind"].value == "sde"


def test_schedules_have_keys_without_effect(tmp_path):
    setting = "roles.student.optimizer.lr_scheduler"
    idle = ("lr_num_cycles", "lr_power", "min_lr_ratio")
    for schedule, without in {
        "constant": idle,
        "linear": ("lr_num_cycles", "lr_power"),
        "polynomial": ("lr_num_cycles",),
        "cosine_with_restarts": ("lr_power",),
    }.items():
        found = knobs(explain(tmp_path, TOY, [f"{setting}={schedule}"]))
        said = [key for key in idle if found[f"roles.student.optimizer.{key}"].meaning.startswith("no effect")]
        assert said == list(without), schedule


def test_headlines(tmp_path):
    assert explain(tmp_path, TOY, ["training.gradient_accumulation_steps=2"]).headlines == {
        "run": "toy on toy: 10 steps of 8 samples",
        "roles": "trained: student",
        "sampled": "by ode in 50 steps, guidance 5",
    }
    lines = explain(tmp_path, DISTILLED, ["pipeline_config.flow_shift=5"]).headlines
    assert lines["roles"] == "trained: student, critic; frozen: teacher"
    shown = "by sde in 4 steps, at 1000, 750, 500, 250 before the flow shift of 5, guidance 1 (none)"
    assert lines["sampled"] == shown
    assert lines["cost"].startswith(
        "6.5 forward equivalents a step (a backward is 2): student 2.5 forward, 0.2 backward; teacher"
    )


def test_a_backward_is_two_forwards():
    assert forward_equivalents({"a": Passes(forwards=1.5, backwards=1), "b": Passes(forwards=2, backwards=0)}) == 5.5


def test_keys_without_a_sentence_have_their_description(tmp_path):
    found = knobs(explain(tmp_path, TOY))
    assert found["training.seed"].meaning == "Every draw of training follows from it"
    assert found["training.gradient_accumulation_steps"].meaning == "1 x 4 = 4 samples a step"
    assert found["training.validation_dataset_file"].meaning == "no effect: log_validation is false"


def test_in_a_pipe_it_is_a_line_a_key(tmp_path, capsys):
    path = write(tmp_path, DISTILLED)
    assert main(["check", str(path), "--explain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run: dmd2 on toy: 10 steps of 1 sample"
    [line] = [line for line in lines if line.startswith("training.seed ")]
    assert line.split() == ["training.seed", "0", "default", "Every", "draw", "of", "training", "follows", "from", "it"]
    assert lines[-1].startswith(f"{path}: ok")
    everything = knobs(explain_run(load_run_file(path)))
    assert [line.split()[0] for line in lines if line.partition(".")[0] in ("training", "roles", "method_config")] == [
        key for key in everything if not key.startswith("pipeline_config")
    ]


@pytest.mark.parametrize("columns", [60, 100, 200])
def test_on_a_terminal_it_fits(tmp_path, capsys, monkeypatch, columns):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["check", str(write(tmp_path, DISTILLED)), "--explain"]) == 0
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)  # bold and colours
    shown = out.partition(str(tmp_path))[0].splitlines()
    assert max(map(len, shown)) <= columns
    words = " ".join(" ".join(shown).split())
    assert "gradient_accumulation_steps" in words
    assert ("1 default 1 x 1 = 1 sample a step" if columns == 200 else "1 (default) 1 x 1 = 1 sample a step") in words


@pytest.mark.parametrize("columns", [30, 40, 59, 60, 80, 140])
def test_nothing_is_cut_off_on_a_narrow_terminal(tmp_path, capsys, monkeypatch, columns):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    path = write(tmp_path, DISTILLED)
    assert main(["check", str(path), "--explain"]) == 0
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "…" not in out
    if columns < 60:
        assert max(map(len, out.partition(str(tmp_path))[0].splitlines())) <= columns
        letters = "".join(out.split())
        explanation = explain_run(load_run_file(path))
        for section, each in explanation.sections.items():
            for knob in each:
                said = (knob.key.removeprefix(f"{section}."), knob.value_text, knob.source, knob.meaning)
                assert "".join("".join(said).split()) in letters, knob.key


def test_as_json(tmp_path, capsys):
    path = write(tmp_path, DISTILLED)
    assert main(["check", str(path), "--explain", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert list(report["explanation"]["sections"]) == [
        "training",
        "roles.student",
        "roles.teacher",
        "roles.critic",
        "pipeline_config",
        "method_config",
    ]
    seed = next(knob for knob in report["explanation"]["sections"]["training"] if knob["key"] == "training.seed")
    assert seed == {
        "key": "training.seed",
        "value": 0,
        "source": "default",
        "meaning": "Every draw of training follows from it",
    }
    assert "explanation" not in json.loads(run_json(path, capsys))


def run_json(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    main(["check", str(path), "--json"])
    return capsys.readouterr().out


def test_a_file_with_errors_is_not_explained(tmp_path, capsys):
    path = write(tmp_path, TOY.replace("flow_shift", "flow_shfit"))
    assert main(["check", str(path), "--explain"]) == 1
    assert "training.seed" not in capsys.readouterr().out
    assert main(["check", str(path), "--explain", "--json"]) == 1
    assert "explanation" not in json.loads(capsys.readouterr().out)


def test_it_loads_no_torch(tmp_path):
    path = write(tmp_path, DISTILLED)
    code = f"from fvd.cli.main import main; main(['check', {str(path)!r}, '--explain'])"
    assert loaded_modules(code) & {"torch", "numpy", "diffusers"} == set()
