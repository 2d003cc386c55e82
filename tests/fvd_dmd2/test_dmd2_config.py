"""The run file's side of dmd2: descriptors, settings, old spellings, findings. All of it without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

import fvd
from fvd.config.check import CheckContext
from fvd_dmd2 import plugin
from fvd_dmd2.config import DMD2Config

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
    config = DMD2Config(dmd_denoising_steps=STEPS)
    assert config.rollout_mode == "simulate"
    assert config.generator_update_interval == 5
    assert (config.min_timestep_ratio, config.max_timestep_ratio) == (0.02, 0.98)
    assert config.standard_guidance_scale == 4.5
    assert config.cfg_uncond.text == "negative_prompt"
    assert config.critic_learning_rate is None


@pytest.mark.parametrize(
    ("written", "meant"),
    [("sim", "simulate"), ("simulate", "simulate"), ("data", "data_latent"), ("vae_latent", "data_latent")],
)
def test_rollout_aliases(written, meant):
    assert DMD2Config(dmd_denoising_steps=STEPS, rollout_mode=written).rollout_mode == meant


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "dmd_denoising_steps"),
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
        ({"critic_betas": "0.9"}, "needs two numbers"),
        ({"generator_update_intervall": 5}, "Extra inputs"),
    ],
)
def test_bad_settings_are_refused(settings, complaint):
    base = {"dmd_denoising_steps": STEPS} if settings else {}
    with pytest.raises(ValidationError, match=complaint):
        DMD2Config(**base | settings)


def test_written_forms_that_mean_the_same():
    config = DMD2Config(dmd_denoising_steps="1000, 750,500.5,0", critic_betas="0.0,0.999", cfg_uncond=None)
    assert config.dmd_denoising_steps == (1000, 750, 500.5, 0)
    assert config.trained_steps == (1000, 750, 500.5)
    assert config.critic_betas == (0.0, 0.999)
    assert config.cfg_uncond.text == "negative_prompt"
    assert (
        DMD2Config(dmd_denoising_steps=STEPS, cfg_uncond={"image": "zero", "on_missing": "ignore"}).cfg_uncond.image == "zero"
    )
    assert DMD2Config.model_validate(config.model_dump(mode="json")) == config


def test_old_keys_lead_to_keys_that_exist():
    moved = spec().moved_keys
    assert {key.to for key in moved.values()} <= set(DMD2Config.model_fields)
    assert moved["fake_score_learning_rate"].values[0.0] is None  # 0 meant "as the student"
    assert moved["simulate_generator_forward"].values == {True: "simulate", False: "data_latent"}
    assert moved["dfake_gen_update_ratio"].to == "generator_update_interval"


def test_roles_and_needs():
    roles = spec().roles
    assert {name: role.trainable for name, role in roles.items()} == {"student": True, "teacher": False, "critic": True}
    assert "predict" in roles["critic"].needs
    assert "training_target" in spec().needs


def findings(
    flow_shift: float = 8.0, *, attn_kinds=("dense",), method_config: fvd.MethodConfig | None = None, **settings
) -> list[fvd.Problem]:
    run = fvd.RunConfig(
        recipe={"family": "toy", "method": "dmd2"},
        roles={name: {"path": "unused"} for name in ("student", "teacher", "critic")},
        training={"output_dir": "out", "max_train_steps": 1, "data_path": "data"},
        pipeline_config=fvd.PipelineConfig(flow_shift=flow_shift),
        method_config=method_config or DMD2Config(**{"dmd_denoising_steps": STEPS} | settings),
    )
    toy = fvd.FamilySpec(name="toy", target="toy:Toy", config="toy:Config", provides=set(), attn_kinds=attn_kinds)
    families = dict.fromkeys(run.roles, toy)
    context = CheckContext(run=run, method=spec(), families=families, locate=lambda key: ("run.yaml", 7))
    return list(plugin.fvd_check_config(context))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "default = 4.5 standard"),
        ({"guidance_convention": "standard"}, "default = 4.5 standard"),
        ({"real_score_guidance_scale": 3.5}, "3.5 (offset) = 4.5 standard"),
        ({"real_score_guidance_scale": 3.5, "guidance_convention": "standard"}, "3.5 (standard) = 3.5 standard"),
        ({"real_score_guidance_scale": 0}, "0 (offset) = 1 standard"),
        ({"real_score_guidance_scale": 0, "guidance_convention": "standard"}, "0 (standard) = 0 standard"),
    ],
)
def test_check_prints_the_effective_guidance(settings, said):
    [note] = findings(**settings)
    assert (note.severity, note.message, note.file, note.line) == ("note", said, "run.yaml", 7)
    assert note.key == "method_config.real_score_guidance_scale"


def test_check_mentions_a_trailing_zero():
    assert any(
        "trailing 0" in found.message and "4 steps" in found.message for found in findings(dmd_denoising_steps=[*STEPS, 0])
    )


def test_check_warns_of_settings_without_effect():
    [_, warning] = findings(attn_kind="vsa")
    assert warning.severity == "warning"
    assert "no effect yet with family 'toy'" in warning.message
    assert len(findings(attn_kind="vsa", attn_kinds=("dense", "vsa"))) == 1
    [_, warning] = findings(cfg_uncond={"text": "keep"})
    assert warning.severity == "warning"
    assert "not guided" in warning.message


def test_check_is_silent_about_other_methods_of_whatever_name():
    assert findings(method_config=fvd.MethodConfig()) == []
