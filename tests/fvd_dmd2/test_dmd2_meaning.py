"""What `fvd check --explain` says of dmd2: every key has its sentence, which follows the value, and whose numbers are right.

``FVD_WRITE_DOCS=1`` writes the texts in ``explained/`` anew.
"""

from __future__ import annotations

import os
import re
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

import pytest
import torch
import yaml
from pydantic import BaseModel
from small_video import SmallVideoAdapter

import fvd
from fvd.cli.check import plain_lines
from fvd.config.changes import flatten
from fvd.config.load import load_run_file
from fvd.config.meaning import Explanation, explain_run
from fvd_dmd2.config import PRESETS, DMD2Config
from fvd_dmd2.idle import idle_keys
from fvd_dmd2.scores import ScoreTimesteps

EXPLAINED = Path(__file__).parent / "explained"
ROLES = ("student", "teacher", "critic")


def run_of(config: DMD2Config, *, flow_shift: float = 5.0, batch: int = 2, adversarial: bool = True) -> fvd.RunConfig:
    return fvd.RunConfig(
        recipe={"family": "toy", "method": "dmd2"},
        roles={name: {"path": "unused"} for name in ROLES} | ({"discriminator": {}} if adversarial else {}),
        training={"output_dir": "out", "max_train_steps": 40, "train_batch_size": batch},
        pipeline_config=fvd.PipelineConfig(flow_shift=flow_shift, negative_prompt="ugly"),
        method_config=config,
    )


def said(config: DMD2Config, **run: Any) -> dict[str, str]:
    return dict(config.meanings(run_of(config, **run)))


def keys_below(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> annotation."""
    found: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= keys_below(inner, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = inner
    return found


KEYS = keys_below(DMD2Config)


def choices(annotation: Any) -> tuple[Any, ...]:
    """The values of a key that has few."""
    if annotation is bool:
        return (True, False)
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(value for part in get_args(annotation) if get_origin(part) is Literal for value in get_args(part))


FEW = {key: choices(annotation) for key, annotation in KEYS.items() if choices(annotation)}
UNSUPPORTED = {"cfg_uncond.image", "cfg_uncond.action"}
"""Without effect, whatever their value."""

WHERE_IT_COUNTS: dict[str, dict[str, Any]] = {
    "cfg_uncond.on_missing": {"cfg_uncond": {"image": "zero"}},
    "guidance_convention": {"real_score_guidance_scale": 3.0},
    "skip_unused_uncond": {"real_score_guidance_scale": 1.0, "guidance_convention": "standard"},
    "gan.train_feature_source": {"gan": {"feature_source": "critic"}},
    "gan.r1": {"gan": {"r1_weight": 1.0}},
}
"""Other keys, without which a key has no effect."""


def with_value(key: str, value: Any) -> DMD2Config:
    settings: dict[str, Any] = {
        name: dict(inner) if isinstance(inner, dict) else inner for name, inner in WHERE_IT_COUNTS.get(key, {}).items()
    }
    section, dot, name = key.partition(".")
    if dot:
        settings.setdefault(section, {})[name] = value
    else:
        settings[section] = value
    if settings.get("cfg_uncond", {}).get("image"):
        # An unknown channel is refused where `on_missing` says so: only its sentence is wanted here.
        inner = DMD2Config().cfg_uncond.model_copy(update=settings.pop("cfg_uncond"))
        return DMD2Config(**settings).model_copy(update={"cfg_uncond": inner})
    return DMD2Config(**settings)


@pytest.mark.parametrize("adversarial", [True, False])
@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_every_key_has_a_sentence(preset, adversarial):
    config = DMD2Config(preset=preset)
    sentences = said(config, adversarial=adversarial)
    assert set(sentences) == set(KEYS)
    assert all(sentences.values())


def test_every_idle_key_and_every_source_is_a_key():
    for preset in (None, *PRESETS):
        for settings in ({}, {"rollout_mode": "data_latent"}, {"update_mode": "either_or"}, {"dmd_denoising_steps": [1000]}):
            config = DMD2Config(preset=preset, **settings)
            for adversarial in (True, False):
                assert set(idle_keys(config, run_of(config), adversarial=adversarial)) <= set(KEYS)
            assert set(config.sources()) <= set(KEYS) | {f"roles.{role}" for role in (*ROLES, "discriminator")}


@pytest.mark.parametrize("key", sorted(set(FEW) - UNSUPPORTED))
def test_each_choice_has_a_sentence_of_its_own(key):
    sentences = {value: said(with_value(key, value))[key] for value in FEW[key]}
    assert not any(sentence.startswith("no effect") for sentence in sentences.values()), sentences
    for one, other in combinations(sentences, 2):
        assert sentences[one] != sentences[other], (one, other)


NUMBERS: dict[str, tuple[Any, Any]] = {
    "dmd_denoising_steps": ([1000, 500], [1000, 600, 300]),
    "generator_update_interval": (4, 5),
    "real_score_guidance_scale": (2.0, 3.0),
    "min_timestep_ratio": (0.02, 0.05),
    "max_timestep_ratio": (0.98, 0.9),
    "score_timestep_shift": (1.0, 3.0),
    "normalizer_epsilon": (1e-5, 1e-6),
    "regression_weight": (0.0, 0.25),
    "gan.weight_generator": (0.0, 0.1),
    "gan.weight_discriminator": (1.0, 0.1),
    "gan.layers": (None, [1, 2]),
    "gan.r1_weight": (0.0, 1.0),
    "gan.r1_alpha": (0.1, 0.2),
}


def test_numbers_are_all_tried():
    assert set(NUMBERS) == set(KEYS) - set(FEW)


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_are_in_their_sentence(key):
    where = {"gan.r1_alpha": {"gan": {"r1_weight": 1.0}}}.get(key, {})
    WHERE_IT_COUNTS.setdefault(key, where)
    first, second = (said(with_value(key, value))[key] for value in NUMBERS[key])
    assert first != second


@pytest.mark.parametrize(
    ("settings", "key", "sentence"),
    [
        ({}, "dmd_denoising_steps", "4 steps, 1000, 937.5, 833.3, 625 after the shift (flow matching)"),
        ({"dmd_denoising_steps": [1000, 0]}, "dmd_denoising_steps", "1 step; the trailing 0 ends it and is not trained on"),
        ({}, "generator_update_interval", "the student moves at every 5th step, counted from 1: 8 updates in this run"),
        ({"generator_update_interval": 1}, "update_mode", "the critic moves at every step: 1 critic update per student update"),
        ({"update_mode": "either_or"}, "update_mode",
         "the critic moves where the student does not: 4 critic updates per student update"),
        ({"real_score_guidance_scale": 3.0}, "real_score_guidance_scale", "3 offset = 4 standard: R = R_u + 4 (R_c - R_u)"),
        ({"real_score_guidance_scale": 0.0}, "real_score_guidance_scale", "0 offset = 1 standard: R = R_c, no guidance"),
        ({}, "real_score_guidance_scale", "default: R = R_u + 4 (R_c - R_u)"),
        ({}, "normalizer", "w = mean |x - R| over each sample"),
        ({"normalizer": "batch"}, "normalizer", "w = mean |x - R| over the 2 samples of a micro-batch"),
        ({}, "normalizer_guard", "g = (F - R) / max(w, 1e-05); non-finite samples are dropped"),
        ({"normalizer_guard": "add"}, "normalizer_guard", "g = (F - R) / (w + 1e-05); non-finite samples are dropped"),
        ({"score_timestep_shift": 0.5}, "score_timestep_shift", "t' = 0.5 t / (1 - 0.5 t / 1000) (flow matching)"),
        ({}, "early_exit", "a rollout ends at the step that is trained on, the last one of its samples"),
        ({"rollout_mode": "data_latent"}, "early_exit", "no effect: with data_latent there are no steps to leave out"),
    ],
)  # fmt: skip
def test_sentences(settings, key, sentence):
    assert said(DMD2Config(**settings))[key] == sentence


class EvenDraws:
    """Uniform numbers without chance: the middles of equal parts of [0, 1)."""

    def __init__(self, count: int) -> None:
        self.count = count

    def rand(self) -> torch.Tensor:
        return (torch.arange(self.count, dtype=torch.float64) + 0.5) / self.count


@pytest.mark.parametrize("draw", ["continuous", "integer"])
@pytest.mark.parametrize("shift", [0.4, 1.0, 5.0, 8.0])
@pytest.mark.parametrize("where", ["inside", "before_shift", "clamp"])
def test_what_is_said_of_score_timesteps_is_what_is_drawn(where, shift, draw):
    """Range before the shift, and the shares that the clamp puts on its ends, against the timesteps of training."""
    config = DMD2Config(score_timestep_range=where, score_timestep_shift=shift, score_timestep_draw=draw)
    timesteps = ScoreTimesteps.of_scores(config, SmallVideoAdapter())
    sentences = said(config)
    words = sentences["score_timestep_draw"]
    first, last = (float(text) for text in words.partition("[")[2].partition("]")[0].split(","))
    assert (first, last) == pytest.approx((timesteps.first, timesteps.last), abs=0.051)

    drawn = timesteps.sample(cast(fvd.StepRandom, EvenDraws(100_000)))
    stated = {
        end: float(share) for share, end in re.findall(r"([\d.]+) % of the draws at (\d+)", sentences["score_timestep_range"])
    }
    for end in (20, 980):
        share = 100 * float((drawn - end).abs().lt(1e-2).float().mean())
        alone = 0.11 if draw == "integer" else 0.0  # a whole number among a thousand
        assert share == pytest.approx(stated.get(str(end), 0.0), abs=0.06 + alone)


def test_the_ladder_that_is_said_is_the_ladder():
    steps = torch.tensor([1000.0, 750.0, 500.0, 250.0])
    shifted = SmallVideoAdapter().shift_and_clamp_timestep(steps, 8.0)
    listed = ", ".join(f"{round(float(t), 1):g}" for t in shifted)
    config = DMD2Config()
    assert config.headlines(run_of(config, flow_shift=8.0))["ladder"].startswith(f"{listed} after")


@pytest.mark.parametrize(
    ("interval", "words"), [(1, "every step"), (2, "every 2nd"), (3, "every 3rd"), (11, "every 11th"), (21, "every 21st")]
)
def test_ordinals(interval, words):
    config = DMD2Config(generator_update_interval=interval)
    assert words in config.headlines(run_of(config))["updates"]


# --- whole texts ---
def explained(folder: Path, preset: str | None) -> str:
    """Headlines, roles and method of one run file."""
    document = {
        "recipe": {"family": "toy", "method": "dmd2"},
        "roles": {"student": {"path": "random"}, "teacher": {"path": "analytic"}, "critic": {"path": "random"}},
        "training": {"output_dir": "outputs/x", "max_train_steps": 4000, "train_batch_size": 2},
        "pipeline_config": {"flow_shift": 5},
        "method_config": {"preset": preset, "normalizer": "frame"},
    }
    if preset in ("dmd2", "fastgen"):
        document["roles"]["discriminator"] = {}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    whole = explain_run(load_run_file(path))
    part = {name: knobs for name, knobs in whole.sections.items() if name not in ("training", "pipeline_config")}
    return "\n".join(plain_lines(Explanation(whole.headlines, part))) + "\n"


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_the_whole_text(tmp_path, preset):
    path = EXPLAINED / f"{preset or 'no_preset'}.txt"
    text = explained(tmp_path, preset)
    if os.environ.get("FVD_WRITE_DOCS") == "1":
        EXPLAINED.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


def test_a_section_of_the_file_that_replaces_the_presets_is_not_called_the_presets():
    config = DMD2Config.model_validate({"preset": "dmd2", "cfg_uncond": {"text": "negative_prompt"}})
    assert "cfg_uncond.text" not in config.sources()
    assert DMD2Config(preset="dmd2").sources()["cfg_uncond.text"] == "preset dmd2"
    assert flatten(config.model_dump())["cfg_uncond.text"] == "negative_prompt"
    assert DMD2Config(rollout_mode="data").sources()["step_choice"] == "default of data_latent"
    assert DMD2Config(preset="fastgen").sources()["step_choice"] == "preset fastgen"
