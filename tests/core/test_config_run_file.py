"""The run file: strict, every problem at once, with its line."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fvd.config.load import LoadedRun, load_run_file
from fvd.config.yaml_lines import read_yaml
from fvd.errors import FvdError, Problem
from fvd.plugins.registry import PluginOptions
from fvd.rundir import dump_run_file

FINETUNE = """\
recipe:
  family: wan
  method: finetune
roles:
  student:
    path: some-org/some-model
training:
  output_dir: outputs/x
  data_path: data/clips
  max_train_steps: 10
pipeline_config:
  flow_shift: 3
method_config:
  timestep_density: uniform
"""

DMD2 = """\
recipe: {family: wan, method: dmd2}
roles:
  student: {path: some-org/some-model}
  teacher: {path: some-org/some-model}
  critic: {path: some-org/some-model}
training: {output_dir: outputs/x, data_path: data/clips, max_train_steps: 10}
method_config: {dmd_denoising_steps: [1000, 750, 500, 250]}
"""


def load(tmp_path: Path, text: str, overrides: tuple[str, ...] | list[str] = ()) -> LoadedRun:
    path = tmp_path / "run.yaml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return load_run_file(path, overrides)


def only(problems: list[Problem], key: str) -> Problem:
    found = [problem for problem in problems if problem.key == key]
    assert len(found) == 1, problems
    return found[0]


def test_a_good_file_parses(tmp_path):
    loaded = load(tmp_path, FINETUNE)
    assert loaded.errors == []
    config = loaded.require()
    assert config.training.max_train_steps == 10
    assert config.roles["student"].family == "wan"
    assert config.roles["student"].trainable is True
    assert config.method_config.timestep_density == "uniform"


@pytest.mark.parametrize("text", ["", "\n", "# recipe:\n", "{}", "---\n"])
def test_an_empty_file_is_told_to_be_empty(tmp_path, text):
    loaded = load(tmp_path, text)
    (problem,) = loaded.errors
    assert problem.message == "the file is empty: no `key: value` line is in it"
    assert "fvd plugins example" in problem.cure
    assert loaded.config is None


@pytest.mark.parametrize("character", ["\0", "\x1b", "\x7f"])
def test_a_control_character_is_a_problem_with_its_line(tmp_path, character):
    (problem,) = load(tmp_path, FINETUNE.replace("max_train_steps: 10", f"max_train_steps: 1{character}")).errors
    assert problem.message == f"not valid YAML: the character U+{ord(character):04X} is not allowed"
    assert problem.line == 10
    assert problem.cure


@pytest.mark.parametrize("content", [b"flow_shift: 3\0", b"flow_shift: \xff\xfe"])
def test_a_broken_pipeline_config_is_a_problem(tmp_path, content):
    (tmp_path / "other.yaml").write_bytes(content)
    text = FINETUNE.replace("pipeline_config:\n  flow_shift: 3\n", f"pipeline_config_path: {tmp_path / 'other.yaml'}\n")
    assert load(tmp_path, text).errors
    assert load(tmp_path, FINETUNE.replace("pipeline_config:\n  flow_shift: 3", 'pipeline_config_path: "a\\0b"')).errors


def test_a_control_character_in_set_is_a_problem(tmp_path):
    (problem,) = load(tmp_path, FINETUNE, ["training.seed=\0"]).errors
    assert (problem.key, problem.message) == ("training.seed", "the value is not valid YAML")


def test_an_escaped_nul_in_a_folders_name_is_no_traceback(tmp_path):
    text = FINETUNE.replace("data_path: data/clips", 'data_path: "a\\0b"\n  validation_data_path: "a\\0c"')
    assert load(tmp_path, text).problems


@pytest.mark.parametrize(
    ("old", "new", "key", "line", "hint"),
    [
        ("  method: finetune", "  method: finetune\n  metod: x", "recipe.metod", 4, "method"),
        (
            "    path: some-org/some-model",
            "    path: some-org/some-model\n    trainabel: true",
            "roles.student.trainabel",
            7,
            "trainable",
        ),
        ("  max_train_steps: 10", "  max_train_steps: 10\n  learnig_rate: 1e-4", "training.learnig_rate", 11, "learning_rate"),
        ("  flow_shift: 3", "  flow_shfit: 3", "pipeline_config.flow_shfit", 12, "flow_shift"),
        ("  timestep_density: uniform", "  timestep_densty: uniform", "method_config.timestep_densty", 14, "timestep_density"),
        ("method_config:\n", "method_confg:\n", "method_confg", 13, "method_config"),
        ("  family: wan", "  family: wna", "recipe.family", 2, "wan"),
        ("  method: finetune", "  method: fintune", "recipe.method", 3, "finetune"),
    ],
)
def test_a_typo_in_every_section_names_line_and_nearest_key(tmp_path, old, new, key, line, hint):
    loaded = load(tmp_path, FINETUNE.replace(old, new))
    problem = only(loaded.errors, key)
    assert problem.line == line
    assert hint in problem.message
    assert loaded.config is None


def test_all_problems_come_at_once(tmp_path):
    text = FINETUNE.replace("  max_train_steps: 10", "  max_train_steps: -1\n  sed: 3").replace("student:", "studnet:")
    keys = {problem.key for problem in load(tmp_path, text).errors}
    assert keys == {"training.max_train_steps", "training.sed", "roles"}


@pytest.mark.parametrize(
    "value", ["data_path: 5", "data_path: [1, 2]", "data_path: ''", "betas: 0.9", "seed: x", "trackers: {a: 1}"]
)
def test_a_wrong_type_is_one_problem(tmp_path, value):
    """A field that accepts several forms must not report once for each of them."""
    key = value.partition(":")[0]
    text = FINETUNE.replace("  data_path: data/clips\n", "" if key == "data_path" else "  data_path: data/clips\n")
    loaded = load(tmp_path, text.replace("  max_train_steps: 10", f"  max_train_steps: 10\n  {value}"))
    assert [problem.key for problem in loaded.errors] == [f"training.{key}"]
    assert loaded.errors[0].line == (10 if key == "data_path" else 11)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("betas: 0.9", "needs two numbers"),
        ("betas: [0.9, 1.5]", "less than 1"),
        ("max_train_steps: true", "must not be true"),
        ("learning_rate: .inf", "finite"),
        ("seed: -1", "greater than or equal to 0"),
        ("seed: 1.5", "whole number"),
        ("seed: 99999999999999999999", "less than"),
        ("wandb_run_name: 5", "must be text, got 5"),
        ("log_validation: maybe", "true or false"),
        ("mixed_precision: fp8", "'bf16'"),
        ("gradient_accumulation_steps:", "got nothing"),
    ],
)
def test_messages_say_it_in_the_words_of_a_run_file(tmp_path, value, words):
    key = value.partition(":")[0]
    text = FINETUNE.replace("  max_train_steps: 10\n", "" if key == "max_train_steps" else "  max_train_steps: 10\n")
    loaded = load(tmp_path, text.replace("  data_path: data/clips", f"  data_path: data/clips\n  {value}"))
    assert words in only(loaded.errors, f"training.{key}").message


def test_nested_keys_are_named_whole(tmp_path):
    text = DMD2.replace("method_config: {", "method_config: {cfg_uncond: {txt: zero}, ")
    problem = only(load(tmp_path, text).errors, "method_config.cfg_uncond.txt")
    assert "'text'" in problem.message


def test_a_slip_in_the_recipe_hides_nothing_else(tmp_path):
    text = FINETUNE.replace("  family: wan", "  famly: wan").replace("    path:", "    pth:")
    text = text.replace("timestep_density", "timestep_densty").replace("flow_shift", "flow_shfit")
    keys = {problem.key for problem in load(tmp_path, text).errors}
    assert keys == {"recipe.famly", "recipe.family", "roles.student.pth", "roles.student.path", "method_config.timestep_densty"}
    text = text.replace("famly", "family")
    assert "pipeline_config.flow_shfit" in {problem.key for problem in load(tmp_path, text).errors}


def test_a_key_outside_its_section(tmp_path):
    problem = only(load(tmp_path, FINETUNE, ["max_train_steps=3"]).errors, "max_train_steps")
    assert "training.max_train_steps" in problem.message


def test_an_output_directory_that_is_a_file(tmp_path):
    (tmp_path / "taken").write_text("x", encoding="utf-8")
    loaded = load(tmp_path, FINETUNE, [f"training.output_dir={tmp_path / 'taken'}"])
    assert only(loaded.errors, "training.output_dir").message == "is a file"


def test_a_size_in_part_is_refused(tmp_path):
    loaded = load(tmp_path, FINETUNE, ["training.num_frames=17"])
    assert "without training.num_height, training.num_width" in only(loaded.errors, "training.num_frames").message
    whole = ["training.num_frames=17", "training.num_height=64", "training.num_width=64"]
    assert load(tmp_path, FINETUNE, whole).errors == []
    by_latents = load(tmp_path, FINETUNE, ["training.num_height=64", "training.num_latent_t=5"])
    assert by_latents.errors == []
    assert "training.num_height" in {problem.key for problem in by_latents.problems if problem.severity == "warning"}


def test_raw_clips_as_data_are_a_warning(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    loaded = load(tmp_path, FINETUNE, [f"training.data_path={tmp_path}"])
    (problem,) = [problem for problem in loaded.problems if problem.key == "training.data_path"]
    assert problem.severity == "warning"
    assert "holds no prepared data" in problem.message


def on_a_ladder(tmp_path, steps: str, scale: str, sampler: str):
    text = DMD2.replace(
        "max_train_steps: 10}",
        f"max_train_steps: 10, validation_sampling_steps: {steps}, validation_guidance_scale: {scale}}}",
    )
    return load(tmp_path, text + f"pipeline_config: {{flow_shift: 3, sampler_kind: {sampler}}}\n")


def test_other_steps_than_those_of_the_ladder_have_no_effect(tmp_path):
    for steps in ("'8'", "[4, 8]"):
        loaded = on_a_ladder(tmp_path, steps, "1.0", "sde")
        problem = only([p for p in loaded.problems if p.severity == "warning"], "training.validation_sampling_steps")
        assert "has no effect: the student of dmd2 is trained, and sampled, on a ladder of 4 steps" in problem.message
        assert loaded.require().training.validation_sampling_steps == (4,)
        assert problem.cure == "Remove it, or write 4."
    assert on_a_ladder(tmp_path, "'4'", "1.0", "sde").problems == load(tmp_path, DMD2).problems


def test_another_sampler_or_guidance_than_the_ladders_has_no_effect(tmp_path):
    loaded = on_a_ladder(tmp_path, "4", "5", "ode")
    warned = {problem.key: problem.message for problem in loaded.problems if problem.severity == "warning"}
    assert "5 has no effect: the student of dmd2 is sampled with guidance 1" in warned["training.validation_guidance_scale"]
    assert "ode has no effect: the student of dmd2 is sampled by sde" in warned["pipeline_config.sampler_kind"]


def test_the_effective_run_file_says_how_the_ladder_is_sampled(tmp_path):
    config = load(tmp_path, DMD2).require()
    training = config.training
    assert (training.validation_sampling_steps, training.validation_guidance_scale) == ((4,), 1.0)
    assert config.pipeline_config.sampler_kind == "sde"
    (tmp_path / "again.yaml").write_text(dump_run_file(config), encoding="utf-8")
    again = load_run_file(tmp_path / "again.yaml")
    assert again.errors == []
    assert again.require().training.validation_sampling_steps == (4,)
    assert again.require().pipeline_config == config.pipeline_config


def test_duplicate_keys_are_reported_with_both_lines(tmp_path):
    text = FINETUNE.replace("  max_train_steps: 10", "  max_train_steps: 10\n  max_train_steps: 20")
    problem = only(load(tmp_path, text).errors, "training.max_train_steps")
    assert problem.line == 11
    assert "line 10" in problem.message


@pytest.mark.parametrize(
    ("yaml_value", "parsed"),
    [("1e-4", 1e-4), ("0", 0.0), ('"2.0e-6"', 2e-6)],
)
def test_learning_rates_mean_what_they_say(tmp_path, yaml_value, parsed):
    text = FINETUNE.replace("  max_train_steps: 10", f"  max_train_steps: 10\n  learning_rate: {yaml_value}")
    assert load(tmp_path, text).require().training.learning_rate == parsed


def test_explicit_zero_and_false_stay(tmp_path):
    text = FINETUNE.replace(
        "  max_train_steps: 10",
        "  max_train_steps: 0\n  min_lr_ratio: 0\n  weight_decay: 0\n"
        "  training_state_checkpointing_steps: 0\n  log_validation: false",
    )
    training = load(tmp_path, text).require().training
    assert (training.max_train_steps, training.min_lr_ratio, training.weight_decay) == (0, 0, 0)
    assert training.training_state_checkpointing_steps == 0
    assert training.log_validation is False


def test_strings_of_existing_files_are_accepted(tmp_path):
    text = FINETUNE.replace(
        "  max_train_steps: 10",
        '  max_train_steps: 10\n  betas: "0.0,0.999"\n  validation_sampling_steps: "4, 8"\n  validation_guidance_scale: "6.0"',
    )
    training = load(tmp_path, text).require().training
    assert training.betas == (0.0, 0.999)
    assert training.validation_sampling_steps == (4, 8)
    assert training.validation_guidance_scale == 6.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", {"a": 1}),
        ("'a:2,b'", {"a": 2, "b": 1}),
        ("[a, b]", {"a": 1, "b": 1}),
        ("{a: 3, b: 0}", {"a": 3}),
    ],
)
def test_data_path_in_all_its_forms(tmp_path, value, expected):
    text = FINETUNE.replace("data_path: data/clips", f"data_path: {value}")
    sources = load(tmp_path, text).require().training.data_sources()
    assert {str(folder): repeats for folder, repeats in sources} == expected


def test_overrides_win_and_their_typos_are_found(tmp_path):
    loaded = load(tmp_path, FINETUNE, ["training.max_train_steps=7", "training.betas=[0.1,0.2]"])
    assert loaded.require().training.max_train_steps == 7
    assert loaded.require().training.betas == (0.1, 0.2)
    problem = only(load(tmp_path, FINETUNE, ["training.max_train_step=7"]).errors, "training.max_train_step")
    assert problem.file == "--set training.max_train_step=7"
    assert "max_train_steps" in problem.message
    assert load(tmp_path, FINETUNE, ["training.seed"]).errors
    assert load(tmp_path, FINETUNE, ["recipe.family.x=1"]).errors


def test_pipeline_config_path(tmp_path):
    (tmp_path / "pipeline.yaml").write_text("flow_shift: 8\n", encoding="utf-8")
    without = FINETUNE.replace("pipeline_config:\n  flow_shift: 3\n", "pipeline_config_path: pipeline.yaml\n")
    assert load(tmp_path, without).require().pipeline_config.flow_shift == 8
    both = FINETUNE + "pipeline_config_path: pipeline.yaml\n"
    assert only(load(tmp_path, both).errors, "pipeline_config_path").line == 15
    (tmp_path / "pipeline.yaml").write_text("flow_shift: 8\nflow_shft: 1\n", encoding="utf-8")
    problem = only(load(tmp_path, without).errors, "pipeline_config.flow_shft")
    assert problem.file.endswith("pipeline.yaml")
    assert problem.line == 2


def test_missing_role_and_trainable_teacher(tmp_path):
    missing = load(tmp_path, DMD2.replace("  critic: {path: some-org/some-model}\n", ""))
    assert "critic" in only(missing.errors, "roles").message
    trained = load(tmp_path, DMD2.replace("teacher: {path: some-org/some-model}", "teacher: {path: a/b, trainable: true}"))
    problem = only(trained.errors, "roles.teacher.trainable")
    assert "frozen" in problem.message
    assert problem.line == 4


def test_old_keys_move_with_a_warning(tmp_path):
    text = DMD2.replace(
        "max_train_steps: 10}",
        "max_train_steps: 10, fake_score_learning_rate: 8.0e-6, fake_score_betas: '0.0,0.999', min_timestep_ratio: 0.05, "
        "simulate_generator_forward: true, num_gpus: 8, train_sp_batch_size: 1, VSA_sparsity: 0.9}",
    )
    loaded = load(tmp_path, text)
    method = loaded.require().method_config
    critic = loaded.require().optimizer_of("critic")
    assert (critic.learning_rate, critic.betas) == (8e-6, (0.0, 0.999))
    assert method.min_timestep_ratio == 0.05
    assert method.rollout_mode == "simulate"
    warnings = {problem.key: problem.message for problem in loaded.problems if problem.severity == "warning"}
    assert "roles.critic.optimizer.learning_rate" in warnings["training.fake_score_learning_rate"]
    for key in ("num_gpus", "train_sp_batch_size", "VSA_sparsity"):
        assert "no effect" in warnings[f"training.{key}"]


def test_what_would_be_lost_in_silence_is_refused(tmp_path):
    for key, value in (("lora_training", "true"), ("dit_precision", "bf16"), ("master_weight_type", "bf16")):
        text = FINETUNE.replace("  max_train_steps: 10", f"  max_train_steps: 10\n  {key}: {value}")
        assert only(load(tmp_path, text).errors, f"training.{key}").cure


FIELD_FILE = """\
recipe:
  family: wan
  method: {method}
roles:
{roles}
training:
  num_gpus: 8
  sp_size: 1
  tp_size: 1
  hsdp_replicate_dim: 8
  hsdp_shard_dim: 1
  data_path: data/some-latents
  dataloader_num_workers: 4
  train_batch_size: 1
  train_sp_batch_size: 1
  gradient_accumulation_steps: 1
  num_latent_t: 20
  num_height: 448
  num_width: 832
  num_frames: 77
  output_dir: outputs/field
  max_train_steps: 4000
  seed: 1000
  checkpoints_total_limit: 3
  learning_rate: 2.0e-6
  mixed_precision: bf16
  betas: "0.0,0.999"
  weight_decay: 0.01
  lr_scheduler: constant
  lr_warmup_steps: 0
  max_grad_norm: 1.0
  training_state_checkpointing_steps: 1000
  weight_only_checkpointing_steps: 1000
  fake_score_learning_rate: 8.0e-6
  fake_score_betas: "0.0,0.999"
  fake_score_lr_scheduler: constant
  training_cfg_rate: 0.0
  min_timestep_ratio: 0.02
  max_timestep_ratio: 0.98
  enable_gradient_checkpointing_type: full
  VSA_sparsity: 0.9
  VSA_decay_rate: 0.03
  VSA_decay_interval_steps: 50
  tracker_project_name: field
  wandb_run_name: field
  log_validation: true
  validation_dataset_file: validation_4.json
  validation_steps: 50
  validation_sampling_steps: "8"
  validation_guidance_scale: "6.0"
pipeline_config:
  flow_shift: 8
  sampler_kind: sde
method_config:
  attn_kind: vsa
{method_config}
"""


@pytest.mark.parametrize("method", ["finetune", "dmd2"])
def test_files_of_the_field_pass_with_warnings(tmp_path, method):
    """The keys that schema-v2 files in the field carry, whichever of the two methods they name."""
    names = ("student",) if method == "finetune" else ("student", "teacher", "critic")
    roles = "\n".join(
        f"  {name}:\n    family: wan\n    path: org/{name}\n    disable_custom_init_weights: true" for name in names
    )
    own = (
        ""
        if method == "finetune"
        else "  rollout_mode: simulate\n  dmd_denoising_steps: [1000, 850, 700, 550, 350, 275, 200, 125]"
    )
    loaded = load(tmp_path, FIELD_FILE.format(method=method, roles=roles, method_config=own))
    assert loaded.errors == []
    warned = {problem.key for problem in loaded.problems if problem.severity == "warning"}
    assert {"training.num_gpus", "training.VSA_sparsity", "training.fake_score_betas", "method_config.attn_kind"} <= warned


def test_requirements_on_plugins(tmp_path):
    assert load(tmp_path, FINETUNE + "plugins: {require: ['fvd-wan>=0.1,<1']}\n").errors == []
    assert (
        "installed is"
        in only(load(tmp_path, FINETUNE + "plugins: {require: ['fvd-wan>=99']}\n").errors, "plugins.require").message
    )
    assert load(tmp_path, FINETUNE + "plugins: {require: ['fvd-nowhere']}\n").errors
    only_dmd2 = load(tmp_path, FINETUNE + "plugins: {only: [fvd-dmd2]}\n")
    assert {problem.key for problem in only_dmd2.errors} >= {"recipe.family", "recipe.method"}


@pytest.mark.parametrize("text", ["", "[1, 2]", "recipe: [", "\tx: 1", "just words"])
def test_broken_yaml_is_a_problem_not_a_traceback(tmp_path, text):
    loaded = load(tmp_path, text)
    assert loaded.errors
    assert loaded.config is None


def test_no_such_file_names_the_nearest(tmp_path):
    (tmp_path / "finetune.yaml").write_text("x: 1", encoding="utf-8")
    with pytest.raises(FvdError, match=r"finetune\.yaml"):
        load_run_file(tmp_path / "fintune.yaml")


def test_lines_of_nested_keys():
    document = read_yaml("a:\n  b:\n    c: 1\n  d: [1,\n    {e: 2}]\n", "f.yaml")
    assert document.data == {"a": {"b": {"c": 1}, "d": [1, {"e": 2}]}}
    assert document.places[("a", "b", "c")] == ("f.yaml", 3)
    assert document.places[("a", "d", "1", "e")] == ("f.yaml", 5)


def run_fvd(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fvd.cli.main", *arguments], cwd=cwd, capture_output=True, text=True)


def test_check_exit_status_and_json(tmp_path):
    (tmp_path / "good.yaml").write_text(FINETUNE, encoding="utf-8")
    (tmp_path / "bad.yaml").write_text(FINETUNE.replace("flow_shift", "flow_shfit"), encoding="utf-8")
    good = run_fvd("check", "good.yaml", cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    bad = run_fvd("check", "bad.yaml", "--json", cwd=tmp_path)
    assert bad.returncode == 1
    report = json.loads(bad.stdout)
    assert report["ok"] is False
    assert [(p["key"], p["line"], p["severity"]) for p in report["problems"] if p["severity"] == "error"] == [
        ("pipeline_config.flow_shfit", 12, "error")
    ]
    assert run_fvd("check", "nowhere.yaml", cwd=tmp_path).returncode == 1


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_shipped_examples_pass(path):
    """With the plugin file that stands beside them: the first rung names it."""
    options = PluginOptions(files=(str(path.parent / "my_method.py"),))
    assert load_run_file(path, options=options).errors == []


def test_there_are_examples():
    assert len(EXAMPLES) >= 3


def test_schema_has_every_plugins_part(tmp_path):
    schema = json.loads(run_fvd("schema", cwd=tmp_path).stdout)
    assert "max_train_steps" in schema["$defs"]["training"]["properties"]
    assert "dmd_denoising_steps" in schema["$defs"]["method_dmd2"]["properties"]
    assert "flow_shift" in schema["$defs"]["family_wan"]["properties"]
