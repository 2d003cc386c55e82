"""Folders in diffusers format: what core reads of them, and what it refuses. Whole models: the tests of the families."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file
from transformers import T5EncoderModel

import fvd
from fvd.diffusers_format import DiffusersComponents, tiny_t5
from fvd.diffusers_format.family import set_flow_shift
from fvd.diffusers_format.loading import read_tensors
from fvd.errors import ModelError
from fvd.model_folder import find_transformers, local_folder, positive_integer, read_json, read_pipeline_index, write_json


class Parts(DiffusersComponents):
    vae_name, text_encoder_class = "NoVae", T5EncoderModel
    clip_plan = fvd.ClipPlan(fps=8.0, geometry=fvd.VideoGeometry(num_frames=9, height=64, width=64))
    max_text_tokens, temporal_ratio, spatial_ratio = 6, 4, 8


@pytest.fixture(scope="module")
def text_parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    encoder, tokenizer = tiny_t5(text_dim=16)
    encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture
def parts(text_parts, tmp_path):
    """``parts(config={…}, weights={…})`` -> the components of a folder with such a VAE."""

    def make(config: dict[str, object], weights: dict[str, torch.Tensor] | None = None) -> Parts:
        for name in ("text_encoder", "tokenizer"):
            (tmp_path / name).symlink_to(text_parts / name)
        (tmp_path / "vae").mkdir()
        write_json(tmp_path / "vae/config.json", {"_class_name": "NoVae", "latent_channels": 2, **config})
        if weights is not None:
            save_file(weights, tmp_path / "vae/model.safetensors")
        context = fvd.FamilyContext(config=fvd.PipelineConfig(), components_path="unused", device=torch.device("cpu"))
        return Parts(tmp_path, context)

    return make


OTHER = {"decoder.weight": torch.zeros(3)}
STATISTICS = {"latents_mean": torch.tensor([1.0, 2.0]), "latents_std": torch.tensor([4.0, 0.5])}


@pytest.mark.parametrize(
    ("config", "weights", "mean", "std"),
    [
        ({"latents_mean": [1, 2], "latents_std": [4, 0.5]}, None, [1, 2], [4, 0.5]),
        ({"latents_mean": [1, 2], "latents_std": [4, 0.5], "scaling_factor": 2}, None, [1, 2], [2, 0.25]),
        ({}, STATISTICS, [1, 2], [4, 0.5]),
        ({"scaling_factor": 2.0}, STATISTICS, [1, 2], [2, 0.25]),
        ({"latents_mean": None, "latents_std": None, "shift_factor": None, "scaling_factor": 0.5}, OTHER, [0, 0], [2, 2]),
        ({"shift_factor": 0.1, "scaling_factor": 0.25}, OTHER, [0.1, 0.1], [4, 4]),
        ({}, OTHER, [0, 0], [1, 1]),
    ],
    ids=["listed", "listed and scaled", "stored", "stored and scaled", "scaled", "shifted and scaled", "none"],
)
def test_latent_statistics_wherever_a_vae_states_them(parts, config, weights, mean, std):
    found = parts(config, weights).latent_statistics
    torch.testing.assert_close(torch.stack(found), torch.tensor([mean, std], dtype=torch.float32))


@pytest.mark.parametrize(
    ("config", "weights", "words"),
    [
        ({"latents_mean": [0.0], "latents_std": [1.0]}, None, "must have 2 entries"),
        ({"latents_mean": [0.0, 0.0], "latents_std": [1.0, 0.0]}, None, "latents_std be positive"),
        ({}, None, "no .safetensors file"),
        ({"latent_channels": 0}, OTHER, "latent_channels must be a positive integer, not 0"),
        ({"_class_name": "OtherVae"}, OTHER, "OtherVae, not a NoVae"),
    ],
)
def test_a_vae_that_does_not_serve_is_refused_before_any_weight_is_loaded(parts, config, weights, words):
    with pytest.raises(ModelError, match=words) as caught:
        parts(config, weights)
    assert caught.value.cure


def test_text_is_cut_to_its_tokens_and_does_not_see_padding(parts):
    components = parts({}, OTHER)
    short, long = components.encode_text(["a", "a cat is sitting on a chair and a dog is running in the garden"])
    tokens = components.tokenizer()("a").input_ids
    with torch.no_grad():
        expected = components.text_encoder()(torch.tensor([tokens])).last_hidden_state[0]
    assert short.shape == (len(tokens), 16)
    torch.testing.assert_close(short, expected, atol=1e-5, rtol=1e-5)
    assert long.shape == (6, 16)
    assert components.encode_prompts(["a"]).mask.tolist() == [[1.0] * len(tokens) + [0.0] * (6 - len(tokens))]
    components.release()  # without a VAE in memory


def test_an_exported_scheduler_shifts_as_the_run_did(tmp_path):
    """A shift that follows the size of the video, and a stretched end, are not what the run sampled with."""
    path = tmp_path / "scheduler_config.json"
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1, max_shift=2.05).save_pretrained(tmp_path)
    set_flow_shift(path, 3.0)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path)
    scheduler.set_timesteps(5)
    expected = FlowMatchEulerDiscreteScheduler(shift=3.0)
    expected.set_timesteps(5)
    assert torch.equal(scheduler.timesteps, expected.timesteps)
    for config, changed in [
        ({"_class_name": "UniPCMultistepScheduler", "flow_shift": 1.0}, {"flow_shift": 3.0}),
        ({"_class_name": "DDIMScheduler"}, {}),
    ]:
        write_json(path, config)
        set_flow_shift(path, 3.0)
        assert read_json(path) == {**config, **changed}


def test_tensors_are_found_in_any_file(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "m-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "m-00002-of-00002.safetensors")
    found = read_tensors(tmp_path, ("b", "c"))
    assert found.keys() == {"b"}
    (tmp_path / "m-00002-of-00002.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ModelError, match="cannot be loaded"):
        read_tensors(tmp_path, ("b",))


# --- folders -----------------------------------------------------------------------------------------------------------
def test_transformers_of_a_pipeline_of_a_folder_and_of_a_bare_transformer(tmp_path):
    for name in ("transformer", "transformer_2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert find_transformers(tmp_path) == {"transformer": tmp_path / "transformer"}
    assert find_transformers(tmp_path / "transformer_2") == {"transformer": tmp_path / "transformer_2"}
    (tmp_path / "model_index.json").write_text(json.dumps({"transformer": ["a", "B"], "transformer_2": [None, None]}))
    names = ("transformer", "transformer_2")
    assert list(find_transformers(tmp_path, names)) == ["transformer"]
    (tmp_path / "model_index.json").write_text(json.dumps({"transformer": ["a", "B"], "transformer_2": ["a", "B"]}))
    assert list(find_transformers(tmp_path, names)) == list(names)
    assert list(find_transformers(tmp_path)) == ["transformer"]
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ModelError, match="names no transformer"):
        find_transformers(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        find_transformers(tmp_path / "empty")


def test_where_a_location_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "file").write_text("")
    assert local_folder("models") == Path("models")
    assert local_folder("Some-Org/some.model-1") is None
    for location, words in [("file", "is a file"), ("models/slip", "does not exist"), ("./a/b", "does not exist")]:
        with pytest.raises(ModelError, match=words):
            local_folder(location)


def test_json_that_is_none(tmp_path):
    path = tmp_path / "config.json"
    for content, words in [(None, "is missing"), ("{", "cannot be read"), ("[1]", "does not hold a JSON object")]:
        if content is not None:
            path.write_text(content)
        with pytest.raises(ModelError, match=words):
            read_json(path)
    path.with_name("model_index.json").write_text('{"_class_name": "A"}')
    with pytest.raises(ModelError, match="is a A, not a B or C"):
        read_pipeline_index(tmp_path, ("B", "C"))


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8", None])
def test_numbers_that_are_none(tmp_path, value):
    with pytest.raises(ModelError, match="width must be a positive integer"):
        positive_integer(tmp_path, {"width": value}, "width")
    assert positive_integer(tmp_path, {"width": 8}, "width") == 8
    assert positive_integer(tmp_path, {}, "width", 4) == 4
