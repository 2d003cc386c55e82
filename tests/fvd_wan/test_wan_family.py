"""Loading, refusing, exporting."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file

import fvd
from fvd.errors import FvdError, ModelError
from fvd_wan.family import WanFamily
from fvd_wan.tiny import make_tiny_transformer


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def save_second_expert(model):
    torch.manual_seed(99)
    make_tiny_transformer().save_pretrained(model / "transformer_2")
    edit_json(model / "model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"], boundary_ratio=0.875)


def test_role_has_the_weights_of_the_file_in_float32(build, tiny_copy):
    path = tiny_copy / "transformer" / "diffusion_pytorch_model.safetensors"
    stored = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(path).items()}
    save_file(stored, path)
    loaded = build(tiny_copy).handle.modules["transformer"].state_dict()
    assert loaded.keys() == stored.keys()
    assert all(loaded[name].dtype == torch.float32 and torch.equal(loaded[name], stored[name].float()) for name in stored)


def test_a_bare_transformer_folder_is_a_role(build, shared, tiny_path):
    built = build(tiny_path, roles={"student": tiny_path / "transformer"})
    assert list(built.handle.modules) == ["transformer"]
    weights, expected = (b.handle.modules["transformer"].state_dict() for b in (built, shared))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_trainable_is_what_the_role_says(build):
    for trainable in (True, False):
        handle = build(trainable=trainable).handle
        assert handle.trainable is trainable
        assert {p.requires_grad for p in handle.modules["transformer"].parameters()} == {trainable}
        assert not handle.modules["transformer"].training


def test_shard_units_are_the_blocks(shared):
    blocks = list(shared.handle.modules["transformer"].blocks)
    units = shared.family.shard_units(shared.handle)
    assert len(units) == len(blocks) == 2
    assert all(unit is block for unit, block in zip(units, blocks, strict=True))


def test_data_spec(shared):
    spec = shared.family.data_spec()
    assert (spec.text_padding_length, spec.conditioning_dropout) == (512, "empty_prompt")
    latents, text = spec.fields
    assert (latents.name, text.name) == ("vae_latent", "text_embedding")
    assert (latents.axes, latents.sizes, latents.source) == (("C", "T", "H", "W"), {"C": 16}, "latents")
    assert (text.axes, text.sizes, text.ragged, text.source) == (("L", "D"), {"D": 32}, "L", "text")


# --- two experts -------------------------------------------------------------------------------------------------------
def test_each_sample_goes_to_the_expert_of_its_timestep(build, tiny_copy, raw_batch):
    save_second_expert(tiny_copy)
    built = build(tiny_copy)
    experts = built.handle.modules
    assert list(experts) == ["transformer", "transformer_2"]
    x_t = torch.randn(2, 16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    text, mask = raw_batch.tensors["text_embedding"], raw_batch.tensors["text_embedding_mask"]
    for pair in ([874.9, 875.0], [875.0, 10.0], [1000.0, 900.0], [100.0, 3.0]):
        t = torch.tensor(pair)
        with torch.no_grad():
            actual = built.adapter.predict(built.handle, x_t, t, fvd.TextConditioning(text, mask))
            for i in range(2):
                expert = experts["transformer_2" if t[i] < 875 else "transformer"]
                expected = expert(x_t[i : i + 1], timestep=t[i : i + 1], encoder_hidden_states=text[i : i + 1]).sample
                torch.testing.assert_close(actual[i : i + 1], expected, atol=1e-5, rtol=1e-5)
    assert len(built.family.shard_units(built.handle)) == 4


def test_run_file_overrides_the_boundary_and_a_missing_one_is_refused(build, tiny_copy):
    save_second_expert(tiny_copy)
    assert build(tiny_copy).adapter.boundary_ratio == 0.875
    assert build(tiny_copy, config={"boundary_ratio": 0.5}).adapter.boundary_ratio == 0.5
    edit_json(tiny_copy / "model_index.json", boundary_ratio=None)
    with pytest.raises(ModelError, match=r"two transformers.*\n.*boundary_ratio"):
        build(tiny_copy)


# --- refusals ----------------------------------------------------------------------------------------------------------
def break_nothing_there(model):
    shutil.rmtree(model)


def break_file_instead(model):
    shutil.rmtree(model)
    model.write_text("weights")


def break_empty(model):
    shutil.rmtree(model)
    model.mkdir()


def break_other_pipeline(model):
    edit_json(model / "model_index.json", _class_name="StableDiffusionPipeline")


def break_other_transformer(model):
    edit_json(model / "transformer" / "config.json", _class_name="FluxTransformer2DModel")


def break_image_to_video_pipeline(model):
    edit_json(model / "model_index.json", _class_name="WanImageToVideoPipeline")


def break_image_to_video_channels(model):
    edit_json(model / "transformer" / "config.json", in_channels=36)


def break_original_format(model):
    (model / "model_index.json").unlink()
    shutil.rmtree(model / "transformer")
    (model / "config.json").write_text(json.dumps({"_class_name": "WanModel", "dim": 1536}))


def break_json(model):
    (model / "model_index.json").write_text("{")


def break_no_transformer_config(model):
    (model / "transformer" / "config.json").unlink()


def break_truncated_weights(model):
    path = model / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def break_no_weights(model):
    (model / "transformer" / "diffusion_pytorch_model.safetensors").unlink()


def break_missing_weight(model):
    path = model / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["proj_out.weight"]
    save_file(tensors, path)


def break_weight_shape(model):
    edit_json(model / "transformer" / "config.json", ffn_dim=100)


def break_time_per_token(model):
    edit_json(model / "model_index.json", expand_timesteps=True)


def break_no_vae(model):
    shutil.rmtree(model / "vae")


def break_vae_class(model):
    edit_json(model / "vae" / "config.json", _class_name="AutoencoderKL")


def break_vae_statistics(model):
    edit_json(model / "vae" / "config.json", latents_std=[1.0] * 15)


def break_text_encoder(model):
    edit_json(model / "text_encoder" / "config.json", model_type="t5")


def break_agreement_channels(model):
    edit_json(model / "vae" / "config.json", z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)


def break_agreement_text(model):
    edit_json(model / "text_encoder" / "config.json", d_model=64)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_nothing_there, "does not exist"),
        (break_file_instead, "is a file"),
        (break_empty, "not a model in diffusers format"),
        (break_other_pipeline, "StableDiffusionPipeline, not a WanPipeline"),
        (break_other_transformer, "FluxTransformer2DModel"),
        (break_image_to_video_pipeline, "image-to-video"),
        (break_image_to_video_channels, "image-to-video"),
        (break_original_format, "Wan's own format"),
        (break_json, "model_index.json cannot be read"),
        (break_no_transformer_config, "config.json is missing"),
        (break_truncated_weights, "transformer cannot be loaded"),
        (break_no_weights, "transformer cannot be loaded"),
        (break_missing_weight, r"1 weights are missing.*proj_out.weight"),
        (break_weight_shape, "transformer cannot be loaded"),
        (break_time_per_token, "TI2V"),
        (break_no_vae, "has no vae"),
        (break_vae_class, "AutoencoderKL, not a AutoencoderKLWan"),
        (break_vae_statistics, "must have 16 entries"),
        (break_text_encoder, "'t5'"),
        (break_agreement_channels, "role 'student'.*16 latent channels.*have 4 and 32"),
        (break_agreement_text, "text of width 32.*have 16 and 64"),
    ],
)
def test_a_folder_that_does_not_serve_is_refused_with_a_cure(build, tiny_copy, damage, words):
    damage(tiny_copy)
    with pytest.raises(ModelError, match=words) as caught:
        build(tiny_copy)
    assert caught.value.cure


def test_a_hub_id_without_a_network_is_a_model_error(build, tiny_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="as a hub id it cannot be fetched"):
        build(tiny_path, roles={"student": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers-Nowhere"})


# --- export ------------------------------------------------------------------------------------------------------------
def export(built, out):
    out.mkdir()
    built.family.export(built.handle, out, "diffusers")
    return out


def test_export_reloads_in_diffusers_with_equal_weights(build, tmp_path, tiny_path):
    built = build(trainable=True, config={"flow_shift": 7.0})
    with torch.no_grad():
        for parameter in built.handle.trainable_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    out = export(built, tmp_path / "exported")

    pipe = WanPipeline.from_pretrained(out)

    trained = built.handle.modules["transformer"].state_dict()
    reloaded = pipe.transformer.state_dict()
    assert trained.keys() == reloaded.keys()
    assert all(torch.equal(trained[name], reloaded[name]) for name in trained)
    assert pipe.transformer.dtype == torch.float32
    assert pipe.transformer_2 is None
    assert pipe.scheduler.config.flow_shift == 7.0
    for part in (
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "fvd.json",
    ):
        assert (out / part).read_bytes() == (tiny_path / part).read_bytes()
    again = build(out)
    assert all(torch.equal(trained[n], w) for n, w in again.handle.modules["transformer"].state_dict().items())


def test_export_of_two_experts(build, tiny_copy, tmp_path):
    save_second_expert(tiny_copy)
    pipe = WanPipeline.from_pretrained(export(build(tiny_copy), tmp_path / "exported"))
    assert isinstance(pipe.transformer_2, WanTransformer3DModel)
    assert pipe.config.boundary_ratio == 0.875
    assert not torch.equal(pipe.transformer.proj_out.weight, pipe.transformer_2.proj_out.weight)


def test_export_of_one_expert_with_the_parts_of_two(build, tiny_copy, tiny_path, tmp_path):
    save_second_expert(tiny_copy)
    built = build(tiny_copy, roles={"student": tiny_path})
    pipe = WanPipeline.from_pretrained(export(built, tmp_path / "exported"))
    assert pipe.transformer_2 is None
    assert pipe.config.boundary_ratio is None


def test_export_sets_the_shift_of_an_euler_scheduler(build, tiny_copy, tmp_path):
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    (tiny_copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    edit_json(tiny_copy / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    out = export(build(tiny_copy, config={"flow_shift": 5.0}), tmp_path / "exported")
    assert WanPipeline.from_pretrained(out).scheduler.shift == 5.0


def test_unknown_export_format_lists_the_known(shared, tmp_path):
    with pytest.raises(FvdError, match=r"'gguf'.*\n.*diffusers"):
        shared.family.export(shared.handle, tmp_path, "gguf")


def test_a_family_needs_its_own_config(tiny_path):
    context = fvd.FamilyContext(config=fvd.PipelineConfig(), components_path=str(tiny_path), device=torch.device("cpu"))
    with pytest.raises(TypeError, match="WanConfig"):
        WanFamily(context)
