"""A real model that predicts v on a DDPM schedule: the same numbers as diffusers' pipeline, and methods that do not notice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import third_party
import torch
from diffusers import CogVideoXPipeline

import fvd
from fvd.cli.main import main
from fvd.diffusers_format import write_tiny_pipeline
from fvd.errors import ModelError
from fvd.plugins import load_plugins
from fvd.samplers.guidance import GuidedModel
from fvd.samplers.sampling import load_sampler, sample_latents

PROMPT, NEGATIVE = "a red ball rolling left, 一个红色的球", "worst quality"
STEPS, SEED, SHAPE = 4, 42, (4, 3, 8, 12)
SIZE = {"num_frames": 9, "height": 64, "width": 96}


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with third_party.installed(tmp_path_factory.mktemp("site"), "fvd-cogvideox"):
        yield


@pytest.fixture(scope="module")
def model(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models") / "cogvideox"
    import_module("fvd_cogvideox.tiny").write_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def rotary_model(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the 5B model."""
    folder = tmp_path_factory.mktemp("models") / "rotary"
    tiny = import_module("fvd_cogvideox.tiny")
    write_tiny_pipeline(folder, partial(tiny.make_pipeline, rotary=True), plan=tiny.PLAN)
    return folder


def build(folder: Path, **config: object) -> SimpleNamespace:
    context = fvd.FamilyContext(config=fvd.PipelineConfig(**config), components_path=str(folder), device=torch.device("cpu"))
    family = import_module("fvd_cogvideox.family").CogVideoXFamily(context)
    handle = family.load_role("student", fvd.RoleConfig(path=str(folder), trainable=False))
    return SimpleNamespace(family=family, handle=handle, adapter=family.build_adapter(fvd.RoleManager([handle])))


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("which", ["model", "rotary_model"])
def test_the_ode_sampler_equals_the_pipeline(which, guidance_scale, request):
    """Prompts, timesteps, noise schedule, network and solver, from pure noise (zero terminal SNR) to the latents."""
    folder = request.getfixturevalue(which)
    built, pipeline = build(folder), CogVideoXPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(SEED))
    expected = pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        **SIZE,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        latents=noise.transpose(1, 2),
        output_type="latent",
    ).frames.transpose(1, 2)

    adapter = built.adapter
    conds = [adapter.encode_prompts([text]) for text in (PROMPT, NEGATIVE)]
    actual = sample_latents(
        GuidedModel(adapter, built.handle, *conds, guidance_scale),
        sampler=load_sampler(load_plugins(only=()), "ode"),
        shape=SHAPE,
        steps=STEPS,
        timesteps=None,
        seeds=[SEED],
    )
    assert (expected - noise).abs().max() > 0.1  # a comparison of something
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0)


def test_prompts_keep_their_padding_as_in_the_pipeline(model):
    pipeline, adapter = CogVideoXPipeline.from_pretrained(model), build(model).adapter
    prompts = [PROMPT, ""]
    expected, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
    cond = adapter.encode_prompts(prompts)
    torch.testing.assert_close(cond.embeddings, expected, atol=1e-5, rtol=0)
    assert torch.equal(cond.mask, torch.ones(2, 226))


def test_latents_are_scaled_and_decoded_like_the_pipeline(model):
    pipeline, adapter = CogVideoXPipeline.from_pretrained(model), build(model).adapter
    own = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(2))
    normalised = adapter.components.normalise(own)
    torch.testing.assert_close(normalised, own * pipeline.vae.config.scaling_factor, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        pixels = pipeline.decode_latents(normalised.transpose(1, 2))
    expected = pipeline.video_processor.postprocess_video(pixels, output_type="pt").permute(0, 2, 1, 3, 4)
    torch.testing.assert_close(adapter.decode(normalised), expected, atol=1e-4, rtol=0)


def test_noise_and_target_are_those_of_the_models_own_scheduler(model):
    adapter = build(model).adapter
    scheduler = CogVideoXPipeline.from_pretrained(model).scheduler
    x0, noise = (torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in (4, 5))
    t = torch.tensor([0, 500, 999])
    torch.testing.assert_close(adapter.add_noise(x0, noise, t), scheduler.add_noise(x0, noise, t), atol=1e-5, rtol=0)
    torch.testing.assert_close(adapter.training_target(x0, noise, t), scheduler.get_velocity(x0, noise, t), atol=1e-5, rtol=0)
    assert torch.equal(adapter.add_noise(x0, noise, t)[2], noise[2])  # zero terminal SNR
    assert torch.equal(adapter.shift_and_clamp_timestep(t.float()), t.float())  # no shift by default


def test_sizes(model):
    components = build(model).adapter.components
    for frames in (1, 9, 17):
        geometry = fvd.VideoGeometry(num_frames=frames, height=32, width=32)
        latents = torch.zeros(1, *components.latent_shape(geometry))
        assert components.decode_video(latents).shape == (1, 3, frames, 32, 32)
    for frames in (5, 10, 13):
        with pytest.raises(fvd.FvdError, match=f"frames {frames}|{frames} frames"):
            components.check_geometry(fvd.VideoGeometry(num_frames=frames, height=32, width=32))


def test_version_1_5_is_refused(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    built = build(folder)
    built.handle.modules["transformer"].register_to_config(patch_size_t=2)
    with pytest.raises(ModelError, match=r"CogVideoX 1\.5"):
        built.adapter.predict(built.handle, torch.zeros(1, *SHAPE), torch.tensor([1.0]), built.adapter.encode_prompts(["a"]))


@pytest.mark.parametrize("method", ["finetune", "dmd2"])
def test_methods_train_it_unchanged(method, model, clips, tmp_path, write_run_file, capfd):
    data, out = tmp_path / "data", tmp_path / "run"
    assert main(["data", "prepare", str(clips), "--family", "cogvideox", "--model", str(model), "--out", str(data)]) == 0
    roles = ("student",) if method == "finetune" else ("student", "teacher", "critic")
    run_file = write_run_file(
        method,
        output_dir=out,
        recipe={"family": "cogvideox"},
        roles={role: {"path": str(model)} for role in roles},
        training={"data_path": str(data), "max_train_steps": 2, "log_validation": True, "validation_steps": 0},
        pipeline_config={"flow_shift": 2.0},
    )
    assert main(["run", str(run_file)]) == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    losses = [value for row in rows for name, value in row.items() if name.startswith("train/") and "loss" in name]
    assert losses
    assert all(0 < loss < 100 for loss in losses)
    assert list((out / "validation/step-00000002").glob("*.mp4"))
    assert main(["export", str(out), "--out", str(tmp_path / "exported")]) == 0
    assert CogVideoXPipeline.from_pretrained(tmp_path / "exported").scheduler.config.prediction_type == "v_prediction"
    capfd.readouterr()
