"""A real model by another author, in a plugin of at most 60 lines: LTX-Video computes what diffusers' own pipeline does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import third_party
import torch
from code_lines import code_lines
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline
from safetensors.torch import load_file, save_file

import fvd
from fvd.cli.main import main
from fvd.errors import ModelError
from fvd.samplers.guidance import GuidedModel

SOURCE = third_party.FOLDER / "fvd-ltx/src"
PROMPT, NEGATIVE = "a red ball rolling left, 一个红色的球", "worst quality"
STEPS, SEED, SHIFT, SHAPE = 4, 42, 3.0, (8, 2, 2, 3)
SIZE = {"num_frames": 9, "height": 64, "width": 96}


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with third_party.installed(tmp_path_factory.mktemp("site"), "fvd-ltx"):
        yield


@pytest.fixture(scope="module")
def model(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline, with latent statistics that are not 0 and 1."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models") / "ltx"
    import_module("fvd_ltx.tiny").write_tiny(folder)
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(weights)
    tensors["latents_mean"] = torch.randn(8, generator=generator)
    tensors["latents_std"] = 0.5 + torch.rand(8, generator=generator)
    save_file(tensors, weights)
    edit_json(folder / "vae/config.json", scaling_factor=1.7)
    return folder


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def build(folder: Path) -> SimpleNamespace:
    config = fvd.PipelineConfig(flow_shift=SHIFT)
    context = fvd.FamilyContext(config=config, components_path=str(folder), device=torch.device("cpu"))
    family = import_module("fvd_ltx.family").LtxFamily(context)
    handle = family.load_role("student", fvd.RoleConfig(path=str(folder), trainable=False))
    return SimpleNamespace(family=family, handle=handle, adapter=family.build_adapter(fvd.RoleManager([handle])))


@pytest.fixture(scope="module")
def built(model: Path) -> SimpleNamespace:
    return build(model)


@pytest.fixture(scope="module")
def pipeline(model: Path) -> LTXPipeline:
    pipe = LTXPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def unpacked(tokens: torch.Tensor) -> torch.Tensor:
    return LTXPipeline._unpack_latents(tokens, *SHAPE[1:])


# --- the same numbers as diffusers -------------------------------------------------------------------------------------
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_every_latent_on_the_way_equals_the_pipeline(built, pipeline, guidance_scale):
    theirs = []
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        **SIZE,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
        callback_on_step_end=lambda pipe, step, t, state: theirs.append((t, unpacked(state["latents"]))) or {},
    )

    adapter = built.adapter
    guided = GuidedModel(
        adapter, built.handle, adapter.encode_prompts([PROMPT]), adapter.encode_prompts([NEGATIVE]), guidance_scale
    )
    scheduler = adapter.scheduler("ode")
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / STEPS, STEPS).tolist())
    latents = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(SEED))
    start = latents
    assert len(theirs) == STEPS
    for t, expected in theirs:
        with torch.no_grad():
            latents = scheduler.step(guided.predict(latents, t.expand(1)), t, latents, return_dict=False)[0]
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)
    assert (latents - start).abs().max() > 0.1  # a comparison of something


def test_prompt_embeddings_equal_the_pipeline(built, pipeline):
    prompts = [PROMPT, "", "a very long text " * 60]
    expected, expected_mask, _, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
    cond = built.adapter.encode_prompts(prompts)
    assert torch.equal(cond.mask, expected_mask.float())
    assert cond.mask.sum(1).tolist()[1:] == [1, 128]
    torch.testing.assert_close(cond.embeddings, expected * expected_mask[..., None], atol=1e-5, rtol=0)


def test_latents_are_normalised_and_decoded_like_the_pipeline(built, pipeline):
    """The statistics stand among the weights of the VAE, and a factor in its config.json."""
    vae, own = pipeline.vae, torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(2))
    expected = pipeline._normalize_latents(own, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    normalised = built.adapter.components.normalise(own)
    torch.testing.assert_close(normalised, expected, atol=1e-5, rtol=1e-5)
    assert (normalised - own).abs().max() > 0.5
    with torch.no_grad():
        pixels = vae.decode(own, None, return_dict=False)[0]
    video = built.adapter.decode(normalised)
    assert video.shape == (2, 3, 9, 64, 96)
    expected = pipeline.video_processor.postprocess_video(pixels, output_type="pt").permute(0, 2, 1, 3, 4)
    torch.testing.assert_close(video, expected, atol=1e-5, rtol=0)


def test_a_vae_with_a_timestep_is_asked_at_zero(built, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    config = json.loads((folder / "vae/config.json").read_text())
    torch.manual_seed(0)
    vae = AutoencoderKLLTXVideo.from_config({**config, "timestep_conditioning": True}).eval()
    vae.save_pretrained(folder / "vae")
    latents = torch.randn(1, *SHAPE)
    with torch.no_grad():
        expected = (vae.decode(latents, torch.tensor([0.0])).sample.clamp(-1, 1) + 1) / 2
        later = (vae.decode(latents, torch.tensor([0.5])).sample.clamp(-1, 1) + 1) / 2
    video = build(folder).adapter.components.decode_video(latents)
    torch.testing.assert_close(video, expected, atol=1e-6, rtol=0)
    assert (video - later).abs().max() > 1e-4


def test_encoders(built, pipeline):
    encoders = built.family.build_encoders()
    video = torch.rand(2, 3, 9, 64, 96, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = pipeline.vae.encode(video * 2 - 1).latent_dist.mean
    torch.testing.assert_close(encoders.encode_video(video), expected, atol=1e-5, rtol=1e-5)
    assert built.adapter.latent_shape(fvd.VideoGeometry(**SIZE)) == tuple(expected.shape[1:]) == SHAPE
    with pytest.raises(fvd.FvdError, match=r"height 48.*multiple of 32.*frames 10 is not 8k \+ 1"):
        encoders.check_geometry(fvd.VideoGeometry(num_frames=10, height=48, width=64))


# --- its size ----------------------------------------------------------------------------------------------------------
def test_the_whole_plugin_is_at_most_60_lines_of_python():
    """Of code: without blank lines, comments and docstrings; the tiny model is counted."""
    counts = {path.name: len(code_lines(path.read_text())) for path in sorted(SOURCE.rglob("*.py"))}
    assert set(counts) == {"__init__.py", "family.py", "plugin.py", "tiny.py"}
    assert sum(counts.values()) <= 60, counts


# --- what fvd makes of it ----------------------------------------------------------------------------------------------
def test_models_of_other_kinds_are_refused(model, tmp_path):
    for part, changes, words in [
        ("model_index.json", {"_class_name": "WanPipeline"}, "WanPipeline, not a LTXPipeline or LTXConditionPipeline"),
        ("transformer/config.json", {"_class_name": "WanTransformer3DModel"}, "not a LTXVideoTransformer3DModel"),
        ("vae/config.json", {"_class_name": "AutoencoderKLWan"}, "not a AutoencoderKLLTXVideo"),
        ("text_encoder/config.json", {"model_type": "umt5"}, "'umt5'; this family uses t5"),
        ("text_encoder/config.json", {"d_model": 64}, "text of width 16.*have 8 and 64"),
    ]:
        folder = shutil.copytree(model, tmp_path / f"{part.replace('/', '-')}-{len(words)}")
        edit_json(folder / part, **changes)
        with pytest.raises(ModelError, match=words) as caught:
            build(folder)
        assert caught.value.cure


def test_it_trains_samples_and_exports(model, clips, tmp_path, write_run_file, capfd):
    data, out = tmp_path / "data", tmp_path / "run"
    assert main(["data", "prepare", str(clips), "--family", "ltx", "--model", str(model), "--out", str(data)]) == 0
    run_file = write_run_file(
        "finetune",
        output_dir=out,
        recipe={"family": "ltx"},
        roles={"student": {"path": str(model)}},
        training={"data_path": str(data), "max_train_steps": 2, "log_validation": True, "validation_steps": 0},
        pipeline_config={"flow_shift": 5.0},
    )
    assert main(["check", str(run_file)]) == 0
    assert main(["run", str(run_file)]) == 0
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    assert list((out / "validation/step-00000002").glob("*.mp4"))
    assert main(["export", str(out), "--out", str(tmp_path / "exported")]) == 0
    capfd.readouterr()
    pipe = LTXPipeline.from_pretrained(tmp_path / "exported")
    assert pipe.scheduler.shift == 5.0
    before, after = (LTXPipeline.from_pretrained(folder).transformer for folder in (model, tmp_path / "exported"))
    changed = [not torch.equal(one, other) for one, other in zip(before.parameters(), after.parameters(), strict=True)]
    assert sum(changed) > len(changed) // 2
