"""The run file's side of dmd2: descriptors, settings, old spellings, findings. All of it without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

import fvd
from fvd.config.changes import flatten
from fvd.config.check import CheckContext
from fvd.config.optimization import EmaConfig, OptimizerConfig, given
from fvd_dmd2 import plugin
from fvd_dmd2.config import BEST_PRACTICE_ROLES, PRESETS, DMD2Config
from fvd_dmd2.method import DMD2Method

STEPS = [1000, 750, 500, 250]


def spec() -> fvd.MethodSpec:
    [found] = plugin.fvd_methods()
    return found


def test_descriptor_and_settings_load_no_torch():
    code = (
        "import sys, fvd_dmd2.plugin as p, fvd_dmd2.config; p.fvd_methods(); "
        "print([m for m in ('torch', 'diffusers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_descriptor_alone_loads_no_pydantic():
    code = "import sys, fvd_dmd2.plugin as p; p.fvd_methods(); print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_defaults():
    config = DMD2Config()
    assert config.dmd_denoising_steps == (1000, 750, 500, 250)
    assert (config.rollout_mode, config.between_steps, config.step_choice) == ("simulate", "sde", "batch")
    assert (config.generator_update_interval, config.update_mode) == (5, "joint")
    assert (config.min_timestep_ratio, config.max_timestep_ratio, config.score_timestep_range) == (0.02, 0.98, "inside")
    assert (config.normalizer, config.normalizer_guard, config.normalizer_epsilon) == ("sample", "floor", 1e-5)
    assert (config.critic_target, config.critic_timestep_range) == ("native", "full")
    assert config.cfg_uncond.text == "negative_prompt"
    assert config.early_exit
    assert config.reuse_rollout
    assert config.separate_graphs


@pytest.mark.parametrize(
    ("given", "warped"),
    [
        ({}, True),
        ({"warp_denoising_step": False}, False),
        ({"dmd_denoising_steps": STEPS}, False),
        ({"dmd_denoising_steps": STEPS, "warp_denoising_step": True}, True),
        ({"preset": "fastvideo"}, False),
        ({"preset": "self_forcing"}, True),
        ({"preset": "self_forcing", "dmd_denoising_steps": [1000, 500]}, True),
    ],
)
def test_only_a_ladder_that_nobody_names_is_warped_unasked(given, warped):
    assert DMD2Config(**given).warp_denoising_step is warped


@pytest.mark.parametrize(
    ("given", "choice"),
    [
        ({}, "batch"),
        ({"rollout_mode": "simulate"}, "batch"),
        ({"rollout_mode": "data_latent"}, "sample"),
        ({"rollout_mode": "data"}, "sample"),
        ({"rollout_mode": "data_latent", "step_choice": "batch"}, "batch"),
        ({"preset": "fastgen"}, "sample"),
        ({"preset": "fastvideo", "rollout_mode": "data_latent"}, "batch"),
    ],
)
def test_noised_data_have_a_step_for_each_sample(given, choice):
    assert DMD2Config(**given).step_choice == choice


@pytest.mark.parametrize(
    ("given", "standard"),
    [
        ({}, 4.0),
        ({"guidance_convention": "standard"}, 4.0),
        ({"real_score_guidance_scale": 3.5}, 4.5),
        ({"real_score_guidance_scale": 3.5, "guidance_convention": "standard"}, 3.5),
        ({"preset": "dmd2"}, 8.0),
        ({"preset": "causvid"}, 4.5),
        ({"preset": "self_forcing"}, 4.0),
        ({"preset": "fastgen"}, 5.0),
        ({"preset": "fastvideo"}, 4.5),
    ],
)
def test_guidance_in_the_standard_convention(given, standard):
    assert DMD2Config(**given).standard_guidance_scale == standard


# --- presets ---
ALL_PRESETS = pytest.mark.parametrize("preset", [None, *PRESETS])


@ALL_PRESETS
def test_a_preset_survives_its_round_trip(preset):
    """The effective run file names the preset and says every key."""
    config = DMD2Config(preset=preset)
    assert DMD2Config.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_preset_says_is_what_the_config_has(preset):
    config = DMD2Config(preset=preset).model_dump()
    said = flatten(PRESETS[preset].method_config)
    assert {key: flatten(config)[key] for key in said} == said


@pytest.mark.parametrize("preset", PRESETS)
def test_what_the_file_says_wins_over_a_preset(preset):
    """Key by key: each of a preset's keys is set to another preset's value, or the default, and nothing else moves."""
    usual = DMD2Config(preset=preset).model_dump()
    others = [DMD2Config(preset=name).model_dump() for name in (None, *PRESETS) if name != preset]
    follows = {"step_choice"} - set(PRESETS[preset].method_config)  # the rollout, where nobody says it
    for key in set(PRESETS[preset].method_config) - {"gan", "generator_update_interval"}:
        value = next(values[key] for values in others if values[key] != usual[key])
        changed = DMD2Config(**{"preset": preset, key: value}).model_dump()
        moved = {name for name in changed if changed[name] != usual[name]}
        assert key in moved
        assert changed[key] == value
        assert moved <= {key} | (follows if key == "rollout_mode" else set())


def test_a_presets_adversarial_loss_is_merged_key_by_key():
    usual = DMD2Config(preset="dmd2").gan
    assert usual.weight_generator == 5e-3
    changed = DMD2Config.model_validate({"preset": "dmd2", "gan": {"weight_generator": 0.5}}).gan
    assert changed == usual.model_copy(update={"weight_generator": 0.5})


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_roles_have_the_presets_optimizers(preset):
    expected = BEST_PRACTICE_ROLES if preset is None else PRESETS[preset].roles
    for role in ("student", "critic", "discriminator"):
        defaults = DMD2Config(preset=preset).role_defaults(role)
        assert given(defaults.optimizer) == expected[role]["optimizer"]
        assert (given(defaults.ema) if defaults.ema else None) == expected[role].get("ema")
    assert given(DMD2Config(preset=preset).role_defaults("teacher").optimizer) == {}


@pytest.mark.parametrize(
    ("written", "meant"),
    [("sim", "simulate"), ("simulate", "simulate"), ("data", "data_latent"), ("vae_latent", "data_latent")],
)
def test_rollout_aliases(written, meant):
    assert DMD2Config(dmd_denoising_steps=STEPS, rollout_mode=written).rollout_mode == meant


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"dmd_denoising_steps": []}, "at least one step above 0"),
        ({"dmd_denoising_steps": [0]}, "at least one step above 0"),
        ({"dmd_denoising_steps": [500, 750]}, "strictly descending; 750 comes after 500"),
        ({"dmd_denoising_steps": [500, 500]}, "strictly descending"),
        ({"dmd_denoising_steps": [1001, 500]}, "less than or equal to 1000"),
        ({"dmd_denoising_steps": [500, -1]}, "greater than or equal to 0"),
        ({"rollout_mode": "real"}, "simulate"),
        ({"generator_update_interval": 0}, "greater than 0"),
        ({"min_timestep_ratio": 0.98}, "must be below max_timestep_ratio"),
        ({"max_timestep_ratio": 1.5}, "less than or equal to 1"),
        ({"real_score_guidance_scale": -1}, "greater than or equal to 0"),
        ({"guidance_convention": "upstream"}, "offset"),
        ({"attn_kind": "sparse"}, "dense"),
        ({"cfg_uncond": {"text": "drop"}}, "negative_prompt"),
        ({"cfg_uncond": {"image": "zero"}}, "only the channel text yet, not image"),
        ({"critic_betas": "0.9"}, "Extra inputs"),
        ({"preset": "fastvid"}, "'dmd2', 'causvid', 'self_forcing', 'fastgen' or 'fastvideo'"),
        ({"preset": ["dmd2"]}, "'dmd2'"),
        ({"update_mode": "either_or", "generator_update_interval": 1}, "would never train the critic"),
        ({"preset": "fastgen", "generator_update_interval": 1}, "would never train the critic"),
        ({"normalizer_epsilon": 0}, "greater than 0"),
        ({"normalizer": "video"}, "sample"),
        ({"score_timestep_shift": 0}, "greater than 0"),
        ({"gan": {"weight": 1}}, "Extra inputs"),
        ({"generator_update_intervall": 5}, "Extra inputs"),
    ],
)
def test_bad_settings_are_refused(settings, complaint):
    with pytest.raises(ValidationError, match=complaint):
        DMD2Config(**settings)


def test_written_forms_that_mean_the_same():
    config = DMD2Config(dmd_denoising_steps="1000, 750,500.5,0", cfg_uncond=None)
    assert config.dmd_denoising_steps == (1000, 750, 500.5, 0)
    assert config.trained_steps == (1000, 750, 500.5)
    assert config.cfg_uncond.text == "negative_prompt"
    assert (
        DMD2Config(dmd_denoising_steps=STEPS, cfg_uncond={"image": "zero", "on_missing": "ignore"}).cfg_uncond.image == "zero"
    )
    assert DMD2Config.model_validate(config.model_dump(mode="json")) == config


def test_old_keys_lead_to_keys_that_exist():
    moved = spec().moved_keys
    to_roles = {"roles.critic.optimizer.": OptimizerConfig, "roles.student.ema.": EmaConfig}
    for key in moved.values():
        model = next((model for prefix, model in to_roles.items() if key.to.startswith(prefix)), DMD2Config)
        assert key.to.rpartition(".")[2] in model.model_fields, key.to
    assert moved["fake_score_learning_rate"].values[0.0] is None  # 0 meant "as the student"
    assert moved["simulate_generator_forward"].values == {True: "simulate", False: "data_latent"}
    assert moved["dfake_gen_update_ratio"].to == "generator_update_interval"


def test_roles_and_needs():
    roles = spec().roles
    trained = {"student": True, "teacher": False, "critic": True, "discriminator": True}
    assert {name: role.trainable for name, role in roles.items()} == trained
    assert [name for name, role in roles.items() if role.optional and role.made_by_method] == ["discriminator"]
    assert "predict" in roles["critic"].needs
    assert "training_target" in spec().needs


# --- what `fvd check` says ---
def findings(
    flow_shift: float = 8.0,
    *,
    attn_kinds=("dense",),
    method_config: fvd.MethodConfig | None = None,
    roles=None,
    training=None,
    **settings,
) -> list[fvd.Problem]:
    """Without the note on guidance, which is always there."""
    run = fvd.RunConfig(
        recipe={"family": "toy", "method": "dmd2"},
        roles={name: {"path": "unused"} for name in ("student", "teacher", "critic")} | (roles or {}),
        training={"output_dir": "out", "max_train_steps": 1, "data_path": "data", **(training or {})},
        pipeline_config=fvd.PipelineConfig(flow_shift=flow_shift),
        method_config=method_config or DMD2Config(**settings),
    )
    toy = fvd.FamilySpec(name="toy", target="toy:Toy", config="toy:Config", provides=set(), attn_kinds=attn_kinds)
    families = dict.fromkeys(run.roles, toy)
    context = CheckContext(run=run, method=spec(), families=families, locate=lambda key: ("run.yaml", 7))
    found = list(plugin.fvd_check_config(context))
    assert all(problem.severity in ("note", "warning") for problem in found)
    return [problem for problem in found if not problem.message.endswith("standard")]


def said(found: list[fvd.Problem]) -> dict[str, str]:
    return {problem.key.removeprefix("method_config."): problem.message for problem in found}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "default = 4 standard"),
        ({"guidance_convention": "standard"}, "default = 4 standard"),
        ({"real_score_guidance_scale": 3.5}, "3.5 (offset) = 4.5 standard"),
        ({"real_score_guidance_scale": 3.5, "guidance_convention": "standard"}, "3.5 (standard) = 3.5 standard"),
        ({"real_score_guidance_scale": 0}, "0 (offset) = 1 standard"),
        ({"real_score_guidance_scale": 0, "guidance_convention": "standard"}, "0 (standard) = 0 standard"),
        ({"preset": "causvid"}, "3.5 (offset) = 4.5 standard"),
    ],
)
def test_check_prints_the_effective_guidance(settings, message):
    run = fvd.RunConfig(
        recipe={"family": "toy", "method": "dmd2"},
        roles={name: {"path": "unused"} for name in ("student", "teacher", "critic")},
        training={"output_dir": "out", "max_train_steps": 1},
        pipeline_config=fvd.PipelineConfig(),
        method_config=DMD2Config(**settings),
    )
    toy = fvd.FamilySpec(name="toy", target="toy:Toy", provides=set())
    context = CheckContext(run, spec(), dict.fromkeys(run.roles, toy), lambda key: ("run.yaml", 7))
    note = next(iter(plugin.fvd_check_config(context)))
    assert (note.severity, note.message, note.file, note.line) == ("note", message, "run.yaml", 7)
    assert note.key == "method_config.real_score_guidance_scale"


def test_a_scale_below_none_is_warned_of():
    """0 is none as an offset; in the standard convention it is the unconditional prediction."""
    [warning] = findings(real_score_guidance_scale=0, guidance_convention="standard")
    assert warning.severity == "warning"
    assert "no guidance is 1 there" in warning.message
    assert findings(real_score_guidance_scale=0) == []
    assert findings(real_score_guidance_scale=1, guidance_convention="standard") == []


def test_check_mentions_a_trailing_zero():
    [note] = findings(dmd_denoising_steps=[*STEPS, 0])
    assert "trailing 0" in note.message
    assert "4 steps" in note.message


def test_check_mentions_a_ladder_that_does_not_begin_at_noise():
    [note] = findings(dmd_denoising_steps=[750, 500])
    assert note.message == "the student is given pure noise, and told that it is at timestep 750 of 1000"
    assert findings(dmd_denoising_steps=[750, 500], rollout_mode="data_latent") == []
    assert findings(preset="dmd2") == []  # 999


def test_check_mentions_two_shifts():
    assert said(findings(3.0, preset="self_forcing")) == {
        "score_timestep_shift": "the scores are compared with a shift of 5, and the ladder has pipeline_config.flow_shift, 3"
    }
    assert findings(5.0, preset="self_forcing") == []
    assert findings(3.0, preset="causvid") == []  # its ladder is not shifted


def test_check_mentions_a_rate_for_all_that_is_the_critics_too():
    [note] = findings(training={"learning_rate": 1e-5})
    assert (note.key, note.message) == ("training.learning_rate", "1e-05 is the critic's rate too, in place of 4e-07")
    assert findings(training={"learning_rate": 4e-7}) == []
    for critic in ({"learning_rate": 1e-6}, {"learning_rate": None}):  # null: as training says, on purpose
        assert findings(training={"learning_rate": 1e-5}, roles={"critic": {"path": "x", "optimizer": critic}}) == []


@pytest.mark.parametrize(
    ("settings", "key", "reason"),
    [
        ({"rollout_mode": "data_latent", "early_exit": False}, "early_exit", "with data_latent"),
        ({"dmd_denoising_steps": [1000], "early_exit": False}, "early_exit", "one step"),
        ({"dmd_denoising_steps": [1000, 0], "between_steps": "ode"}, "between_steps", "one step"),
        ({"dmd_denoising_steps": [1000], "step_choice": "sample"}, "step_choice", "one step"),
        ({"update_mode": "either_or", "reuse_rollout": False}, "reuse_rollout", "no step trains student and critic both"),
        ({"update_mode": "either_or", "separate_graphs": False}, "separate_graphs", "a step has one loss"),
        ({"guidance_convention": "standard"}, "guidance_convention", "no scale is given"),
        ({"real_score_guidance_scale": 0, "cfg_uncond": {"text": "zero"}}, "cfg_uncond.text", "not guided"),
        ({"skip_unused_uncond": False}, "skip_unused_uncond", "uses the unconditional forward"),
        ({"real_score_guidance_scale": 0, "batch_guidance": False}, "batch_guidance", "no unconditional forward"),
        ({"cfg_uncond": {"image": "zero", "on_missing": "ignore"}}, "cfg_uncond.image", "no family"),
        ({"cfg_uncond": {"on_missing": "ignore"}}, "cfg_uncond.on_missing", "no channel"),
        (
            {"min_timestep_ratio": 0, "max_timestep_ratio": 1, "score_timestep_range": "clamp"},
            "score_timestep_range",
            "whole schedule",
        ),
        (
            {"min_timestep_ratio": 0, "max_timestep_ratio": 1, "critic_timestep_range": "score"},
            "critic_timestep_range",
            "whole schedule",
        ),
        ({"normalizer": "batch"}, "normalizer", "a micro-batch is one sample"),
        ({"normalizer_guard": "none", "normalizer_epsilon": 1e-3}, "normalizer_epsilon", "nothing is added"),
    ],
)
def test_check_mentions_what_is_set_in_vain(settings, key, reason):
    [note] = [note for note in findings(**settings) if note.key == f"method_config.{key}"]
    assert note.severity == "note"
    assert note.message.startswith("has no effect: ")
    assert reason in note.message


@pytest.mark.parametrize(
    "settings",
    [
        {},
        *({"preset": name} for name in PRESETS if name != "self_forcing"),
        {"rollout_mode": "data_latent"},
        {"rollout_mode": "data_latent", "reuse_rollout": False},  # the data are noised anew
        {"rollout_mode": "data_latent", "between_steps": "ode"},  # in sampling
        {"generator_update_interval": 1, "reuse_rollout": False},
        {"dmd_denoising_steps": [1000]},
        {"dmd_denoising_steps": [1000], "rollout_mode": "data_latent"},
        {"real_score_guidance_scale": 0, "skip_unused_uncond": False},
        {"normalizer_guard": "none"},
        {"min_timestep_ratio": 0, "max_timestep_ratio": 1},
    ],
    ids=str,
)
def test_check_is_silent_about_what_has_an_effect_or_is_not_set(settings):
    assert findings(**settings) == []


def test_a_warp_in_vain():
    assert "flow_shift is 1" in said(findings(1.0, preset="dmd2", warp_denoising_step=True))["warp_denoising_step"]
    assert findings(1.0) == []


def test_an_effective_run_file_is_in_vain_nowhere():
    """It says every key; what it says without effect is what would be there anyway."""
    for preset in (None, *PRESETS):
        config = DMD2Config(preset=preset, rollout_mode="data_latent", update_mode="either_or")
        said_whole = DMD2Config.model_validate(config.model_dump(mode="json"))
        assert findings(5.0, method_config=said_whole) == findings(5.0, method_config=config)


def test_check_warns_of_an_adversarial_loss_that_is_not_there():
    [warning] = findings(gan={"weight_generator": 0.1, "r1_weight": 1.0})
    assert (warning.key, warning.severity) == ("method_config.gan", "warning")
    assert "names the role discriminator" in warning.message
    on = {"discriminator": {}}
    assert findings(gan={"weight_generator": 0.1, "r1_weight": 1.0}, roles=on) == []
    assert said(findings(gan={"r1": "exact"}, roles=on)) == {"gan.r1": "has no effect: r1_weight is 0"}
    assert said(findings(gan={"timestep": "clean", "real_timestep": "own"}, roles=on)) == {
        "gan.real_timestep": "has no effect: nothing is noised"
    }
    assert findings(update_mode="either_or", separate_graphs=False, roles=on) == []  # critic and discriminator


def test_check_warns_of_settings_without_effect():
    [warning] = findings(attn_kind="vsa")
    assert warning.severity == "warning"
    assert "no effect yet with family 'toy'" in warning.message
    assert findings(attn_kind="vsa", attn_kinds=("dense", "vsa")) == []
    [warning] = findings(cfg_uncond={"text": "keep"})
    assert warning.severity == "warning"
    assert "not guided" in warning.message


def test_check_is_silent_about_other_methods_of_whatever_name():
    assert findings(method_config=fvd.MethodConfig()) == []


def test_features_of_the_teacher_are_not_trained_along_whatever_the_preset_says():
    """The preset dmd2 looks at the critic and trains it; the teacher is frozen."""
    preset = DMD2Config(preset="dmd2")
    assert (preset.gan.feature_source, preset.gan.train_feature_source) == ("critic", True)
    gan = DMD2Config.model_validate({"preset": "dmd2", "gan": {"feature_source": "teacher"}}).gan
    assert (gan.feature_source, gan.train_feature_source, gan.timestep) == ("teacher", False, "uniform")
    assert DMD2Config.model_validate({"preset": "dmd2", "gan": {"timestep": "clean"}}).gan.train_feature_source
    with pytest.raises(ValidationError, match="train_feature_source needs feature_source: critic"):
        DMD2Config.model_validate({"preset": "dmd2", "gan": {"feature_source": "teacher", "train_feature_source": True}})


@pytest.mark.parametrize("steps", [0, 1, 4, 5, 6, 23])
@pytest.mark.parametrize("interval", [1, 2, 5, 7])
@pytest.mark.parametrize("mode", ["joint", "either_or"])
def test_how_often_a_role_moves_is_what_the_method_does(steps, interval, mode):
    """`fvd check` asks the config, the trainer the method; with a discriminator or without."""
    if (interval, mode) == (1, "either_or"):
        return  # refused
    config = DMD2Config(generator_update_interval=interval, update_mode=mode)
    run = fvd.RunConfig(
        recipe={"family": "toy", "method": "dmd2"},
        roles={name: {} for name in ("student", "teacher", "critic", "discriminator")},
        training={"output_dir": "x", "max_train_steps": steps},
        pipeline_config=fvd.PipelineConfig(),
        method_config=config,
    )
    method = DMD2Method.__new__(DMD2Method)
    vars(method).update(config=config, gan=object())
    moved = [role for iteration in range(1, steps + 1) for role in method.roles_to_update(iteration)]
    for role in ("student", "critic", "discriminator"):
        assert config.role_updates(run, role) == moved.count(role)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_says_every_convention_so_that_no_default_changes_it(preset):
    said = set(PRESETS[preset].method_config)
    not_conventions = {"preset", "attn_kind", "gan", "regression_weight", "normalizer_epsilon"}
    assert set(DMD2Config.model_fields) - said <= not_conventions
