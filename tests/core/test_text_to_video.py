"""What every text-to-video family inherits, on one made of a few lines, with a velocity and with a v network."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler

import fvd
from fvd.errors import DataError, FvdError

CPU = torch.device("cpu")
MEAN, STD = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2.0, 0.5, 1.5])
GEOMETRY = fvd.VideoGeometry(num_frames=9, height=16, width=24)


class FewLines(fvd.Components):
    """The "VAE" keeps every fourth pixel and frame; a word is embedded as its length."""

    latent_channels, text_dim, max_text_tokens = 3, 2, 5
    temporal_ratio, spatial_ratio, patch_size = 4, 4, 2
    default_plan = fvd.ClipPlan(fps=8.0, geometry=GEOMETRY)
    digest = "few lines"

    def __init__(self):
        self.device = CPU
        self.encoded = []
        self.released = 0

    @cached_property
    def latent_statistics(self):
        return MEAN, STD

    def encode_video(self, video):
        return video[:, :, ::4, ::4, ::4]

    def decode_video(self, latents):
        return latents.repeat_interleave(4, 2)[:, :, 3:].repeat_interleave(4, 3).repeat_interleave(4, 4)

    def encode_text(self, captions):
        self.encoded += captions
        return [torch.tensor([[len(word), 1.0] for word in (*text.split(), "</s>")])[:5] for text in captions]

    def release(self):
        self.released += 1


class VelocityAdapter(fvd.TextToVideoAdapter):
    def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
        with self.autocast():
            return (x_t + cond.embeddings.sum()).float()


class VAdapter(fvd.TextToVideoDiffusionAdapter):
    predict = VelocityAdapter.predict

    def make_scheduler(self):
        return DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)


class Family(fvd.TextToVideoFamily):
    name = "few_lines"
    adapter_class = VelocityAdapter

    @cached_property
    def components(self):
        return FewLines()

    def load_role(self, name, spec):
        raise NotImplementedError

    def export(self, handle, out_dir, format):
        raise NotImplementedError


def context(*, config=None, **changes):
    given = {"config": fvd.PipelineConfig(**(config or {})), "components_path": "unused", "device": CPU, **changes}
    return fvd.FamilyContext(**given)


@pytest.fixture(params=[VelocityAdapter, VAdapter])
def make(request):
    """``make(config={…}, **context)`` -> an adapter of either kind."""
    return lambda **changes: request.param(context(**changes), FewLines())


@pytest.fixture
def raw_batch():
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1.0, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    tensors = {
        "vae_latent": torch.randn(2, 3, 3, 4, 6, generator=generator),
        "text_embedding": torch.randn(2, 5, 2, generator=generator) * mask[..., None],
        "text_embedding_mask": mask,
    }
    return fvd.RawBatch(tensors, torch.tensor([False, False]), [{"id": "a"}, {"id": "b"}])


# --- batches -----------------------------------------------------------------------------------------------------------
def test_latents_of_the_data_are_normalised(make, raw_batch):
    own = raw_batch.tensors["vae_latent"]
    batch = make().prepare_batch(raw_batch, latents_source="data")
    expected = torch.stack([(own[:, c].double() - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    torch.testing.assert_close(batch.latents.double(), expected, atol=1e-6, rtol=1e-6)
    assert batch.latents.dtype == torch.float32
    assert batch.info == [{"id": "a"}, {"id": "b"}]
    assert batch.uncond is None


def test_text_comes_with_its_mask(make, raw_batch):
    cond = make().prepare_batch(raw_batch, latents_source="data").cond
    assert torch.equal(cond.embeddings, raw_batch.tensors["text_embedding"])
    assert torch.equal(cond.mask, raw_batch.tensors["text_embedding_mask"])


def test_zero_latents_are_of_the_run_files_size_or_the_datas(make, raw_batch):
    sizes = [
        make(**given).prepare_batch(raw_batch, latents_source="zeros").latents
        for given in ({}, {"geometry": GEOMETRY}, {"geometry": GEOMETRY, "latent_frames": 2}, {"latent_frames": 9})
    ]
    assert [tuple(size.shape) for size in sizes] == [(2, 3, 3, 4, 6), (2, 3, 3, 4, 6), (2, 3, 2, 4, 6), (2, 3, 3, 4, 6)]
    assert all(torch.equal(size, torch.zeros_like(size)) for size in sizes)
    del raw_batch.tensors["vae_latent"]
    assert make(geometry=GEOMETRY).prepare_batch(raw_batch, latents_source="zeros").latents.shape == (2, 3, 3, 4, 6)
    with pytest.raises(DataError, match=r"which size.*\n.*num_height"):
        make().prepare_batch(raw_batch, latents_source="zeros")


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("vae_latent", torch.zeros(2, 4, 3, 4, 6), r"\[4, 3, 4, 6\].*needs \[3, T, H, W\]"),
        ("vae_latent", torch.zeros(2, 3, 3, 3, 6), "multiples of 2"),
        ("vae_latent", torch.zeros(2, 3, 4, 6), r"vae_latent has shape"),
        ("vae_latent", None, "no vae_latent"),
        ("text_embedding", torch.zeros(2, 5, 3), r"\[5, 3\].*needs \[5, 2\]"),
        ("text_embedding", torch.zeros(2, 4, 2), r"\[4, 2\].*needs \[5, 2\]"),
        ("text_embedding", None, "no text_embedding"),
        ("text_embedding_mask", None, "no text_embedding_mask"),
    ],
)
def test_data_of_another_model_are_refused_with_a_cure(make, raw_batch, name, tensor, words):
    raw_batch.tensors[name] = tensor
    if tensor is None:
        del raw_batch.tensors[name]
    with pytest.raises(DataError, match=words) as caught:
        make().prepare_batch(raw_batch, latents_source="data")
    assert caught.value.cure


# --- text --------------------------------------------------------------------------------------------------------------
def test_prompts_are_padded_with_zeros_and_masked(make):
    cond = make().encode_prompts(["a cat", "one two three four five six"])
    assert cond.embeddings.shape == (2, 5, 2)
    assert cond.mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert cond.embeddings[0, :, 0].tolist() == [1, 3, 4, 0, 0]  # a, cat, </s>


def test_dropped_samples_get_the_empty_prompt_and_its_mask(make, raw_batch):
    adapter = make(conditioning_dropout_rate=0.1)
    adapter.on_train_start()
    adapter.on_train_start()
    assert adapter.components.encoded == [""]
    dropped = dataclasses.replace(raw_batch, dropped=torch.tensor([False, True]))
    cond = adapter.prepare_batch(dropped, latents_source="data").cond
    empty = adapter.encode_prompts([""])
    assert torch.equal(cond.embeddings[1], empty.embeddings[0])
    assert cond.mask[1].tolist() == [1, 0, 0, 0, 0]
    assert torch.equal(cond.embeddings[0], raw_batch.tensors["text_embedding"][0])
    assert torch.equal(cond.mask[0], raw_batch.tensors["text_embedding_mask"][0])


def test_nothing_is_encoded_where_nothing_is_dropped(make, raw_batch):
    adapter = make()
    adapter.on_train_start()
    assert adapter.components.encoded == []
    with pytest.raises(FvdError, match=r"empty prompt.*\n.*training_cfg_rate"):
        adapter.prepare_batch(dataclasses.replace(raw_batch, dropped=torch.tensor([True, False])), latents_source="data")


def test_the_negative_prompt_is_encoded_once_and_only_when_asked(make, raw_batch):
    adapter = make(config={"negative_prompt": "static blur"})
    with pytest.raises(FvdError, match="ensure_negative_conditioning"):
        adapter.negative_conditioning(1)
    adapter.ensure_negative_conditioning()
    adapter.ensure_negative_conditioning()
    assert adapter.components.encoded == ["static blur"]
    uncond = adapter.prepare_batch(raw_batch, latents_source="data").uncond
    assert uncond.mask.tolist() == [[1, 1, 1, 0, 0]] * 2
    assert torch.equal(uncond.embeddings, adapter.encode_prompts(["static blur"] * 2).embeddings)


def test_the_negative_prompt_is_empty_by_default(make):
    adapter = make()
    adapter.ensure_negative_conditioning()
    assert adapter.components.encoded == [""]


def test_zero_conditioning_keeps_shapes_and_masks(make):
    cond = make().encode_prompts(["a cat"])
    zero = make().zero_conditioning(cond)
    assert torch.equal(zero.embeddings, torch.zeros(1, 5, 2))
    assert torch.equal(zero.mask, cond.mask)


# --- sizes and pixels --------------------------------------------------------------------------------------------------
def test_decoding_undoes_normalisation(make):
    adapter = make()
    latents = adapter.components.encode_video(torch.rand(1, 3, 9, 16, 24, generator=torch.Generator().manual_seed(1)))
    video = adapter.decode(adapter.components.normalise(latents))
    assert video.shape == (1, 3, 9, 16, 24)
    torch.testing.assert_close(adapter.components.encode_video(video), latents, atol=1e-6, rtol=1e-5)
    assert adapter.latent_shape(GEOMETRY) == tuple(latents.shape[1:])


@pytest.mark.parametrize(
    ("frames", "height", "width", "words"),
    [
        (8, 16, 16, r"frames 8 is not 4k \+ 1"),
        (9, 12, 16, "height 12 is not a multiple of 8"),
        (9, 16, 4, "width 4"),
        (-3, 16, 16, "frames -3"),
        (0, 0, -8, "height 0.*width -8.*frames 0"),
    ],
)
def test_all_that_is_wrong_with_a_size_is_said_at_once(make, frames, height, width, words):
    with pytest.raises(FvdError, match=words) as caught:
        make().latent_shape(fvd.VideoGeometry(num_frames=frames, height=height, width=width))
    assert caught.value.cure == "Height and width must be multiples of 8, and frames 4k + 1: 1, 5, 9, …"


def test_statistics_default_to_the_identity():
    class Plain(FewLines):
        latent_statistics = fvd.Components.latent_statistics

    latents = torch.randn(1, 3, 2, 2, 2)
    assert torch.equal(Plain().normalise(latents), latents)
    assert torch.equal(Plain().denormalise(latents), latents)


# --- schedules ---------------------------------------------------------------------------------------------------------
def test_flow_matching_schedulers_are_fresh_and_carry_the_shift():
    adapter = VelocityAdapter(context(config={"flow_shift": 5.0}), FewLines())
    for kind in ("ode", "sde"):
        assert type(adapter.scheduler(kind)).__name__ == "FlowMatchEulerDiscreteScheduler"
        assert adapter.scheduler(kind).shift == 5.0
        assert adapter.scheduler(kind) is not adapter.scheduler(kind)
    with pytest.raises(FvdError, match=r"'sdde'.*\n.*ode, sde"):
        adapter.scheduler("sdde")


def test_a_diffusion_family_takes_its_schedule_from_its_scheduler():
    adapter = VAdapter(context(config={"flow_shift": 2.0}), FewLines())
    assert adapter.schedule.prediction_type == "v"
    torch.testing.assert_close(adapter.schedule.alphas_cumprod.float(), VAdapter.make_scheduler(adapter).alphas_cumprod)
    assert adapter.num_train_timesteps == 1000
    assert adapter.flow_shift == 2.0
    assert type(adapter.scheduler("ode")).__name__ == "DDIMScheduler"
    with pytest.raises(FvdError, match="'euler'"):
        adapter.scheduler("euler")


def test_both_adapters_implement_the_whole_vocabulary(make):
    missing = {
        name for name in fvd.TEXT_TO_VIDEO & vars(fvd.Adapter).keys() if getattr(type(make()), name) is vars(fvd.Adapter)[name]
    }
    assert missing == set()
    assert make().num_train_timesteps == 1000


def test_predictions_agree(make):
    adapter = make()
    handle, cond = SimpleNamespace(family="few_lines", modules={}), adapter.encode_prompts(["a cat"])
    x_t, t = torch.randn(1, 3, 3, 4, 6), torch.tensor([700.0])
    x0, noise = (predict(handle, x_t, t, cond) for predict in (adapter.predict_x0, adapter.predict_noise))
    torch.testing.assert_close(adapter.add_noise(x0, noise, t), x_t, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        adapter.training_target(x0, noise, t), adapter.predict(handle, x_t, t, cond), atol=1e-4, rtol=1e-4
    )


def test_nothing_is_autocast_on_the_cpu(make):
    with make(autocast_dtype=torch.bfloat16).autocast():
        assert not torch.is_autocast_enabled("cpu")


# --- the family --------------------------------------------------------------------------------------------------------
def test_the_family_shares_one_components_object(raw_batch):
    family = Family(context())
    adapter = family.build_adapter(fvd.RoleManager([]))
    assert type(adapter) is VelocityAdapter
    assert adapter.components is family.components is family.build_encoders()
    adapter.release()
    assert family.components.released == 1


def test_data_spec_states_the_sizes():
    spec = Family(context()).data_spec()
    latents, text = spec.fields
    assert (latents.name, latents.axes, latents.sizes, latents.source) == (
        "vae_latent",
        ("C", "T", "H", "W"),
        {"C": 3},
        "latents",
    )
    assert (text.name, text.sizes, text.ragged, text.source) == ("text_embedding", {"D": 2}, "L", "text")
    assert spec.text_padding_length == 5


def test_only_roles_of_the_family_are_checked():
    seen = []

    class Checking(Family):
        def check_role(self, handle):
            seen.append(handle.name)

    handles = [
        fvd.RoleHandle(name=name, family=family, trainable=False, modules={})
        for name, family in (("student", "few_lines"), ("teacher", "other"))
    ]
    Checking(context()).build_adapter(fvd.RoleManager(handles))
    assert seen == ["student"]


def test_core_needs_no_diffusers_for_it():
    sources = [
        Path(fvd.__file__).parent / name for name in ("components.py", "textvideo.py", "diffusion.py", "model_folder.py")
    ]
    imports = [line for path in sources for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
    assert not [line for line in imports if "diffusers" in line or "transformers" in line]
