"""The tiny model: reproducible, sane, and able to learn. And the encoders of `fvd data prepare` on it."""

from __future__ import annotations

import argparse
import json

import pytest
import torch
from transformers import AutoTokenizer

import fvd
from fvd.errors import FvdError, ModelError
from fvd_wan.cli import configure
from fvd_wan.components import WAN_PLAN
from fvd_wan.tiny import make_tiny_wan


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def moving_clips(count=2):
    """Coloured squares that move, [B, 3, 9, 64, 64] in [0, 1]."""
    video = torch.full((count, 3, 9, 64, 64), 0.2)
    for clip in range(count):
        for frame in range(9):
            left = 4 * frame if clip % 2 == 0 else 40 - 4 * frame
            video[clip, clip % 3, frame, 16:40, left : left + 20] = 0.9
    return video


def test_equal_seeds_equal_bytes(tiny_path, tmp_path):
    torch.rand(3)  # the state of the global generator must not matter ...
    before = torch.get_rng_state()
    make_tiny_wan(tmp_path / "again")
    make_tiny_wan(tmp_path / "other", seed=1)
    assert torch.equal(torch.get_rng_state(), before)  # ... nor be touched
    first, again, other = content(tiny_path), content(tmp_path / "again"), content(tmp_path / "other")
    assert first == again
    assert {name for name in first if first[name] != other[name]} == {name for name in first if name.endswith(".safetensors")}
    assert sum(len(data) for data in first.values()) < 10_000_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"]  # nothing left aside


def test_existing_folders_are_respected(tiny_copy, tmp_path):
    (tiny_copy / "mine.txt").write_text("notes")
    with pytest.raises(ModelError, match="not empty"):
        make_tiny_wan(tiny_copy)
    assert (tiny_copy / "mine.txt").exists()
    make_tiny_wan(tiny_copy, overwrite=True)
    assert not (tiny_copy / "mine.txt").exists()
    assert (tiny_copy / "model_index.json").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("text")
    with pytest.raises(ModelError, match="not a model folder"):
        make_tiny_wan(tmp_path / "thesis", overwrite=True)
    with pytest.raises(ModelError, match="is a file"):
        make_tiny_wan(tmp_path / "thesis" / "chapter1.tex", overwrite=True)
    assert content(tmp_path / "thesis") == {"chapter1.tex": b"text"}


def test_a_failure_leaves_what_was_there(tiny_copy, monkeypatch):
    before = content(tiny_copy)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fvd_wan.tiny.save_tiny_tokenizer", full)
    with pytest.raises(FvdError, match="No space left"):
        make_tiny_wan(tiny_copy, seed=5, overwrite=True)
    assert content(tiny_copy) == before
    assert [path.name for path in tiny_copy.parent.iterdir()] == [tiny_copy.name]


def test_command(tmp_path, capsys, tiny_path):
    parser = argparse.ArgumentParser()
    configure(parser)
    args = parser.parse_args(["tiny", str(tmp_path / "deep" / "model"), "--seed", "0"])
    assert args.execute(args) == 0
    assert content(tmp_path / "deep" / "model") == content(tiny_path)
    assert str(tmp_path / "deep" / "model") in capsys.readouterr().out


@pytest.mark.parametrize("text", ["a red ball rolling left", "一个红色的球", "naïve 😀\ttabs\nlines  <b>", ""])
def test_tokenizer_takes_any_text_and_gives_it_back(tiny_path, text):
    tokenizer = AutoTokenizer.from_pretrained(tiny_path / "tokenizer")
    ids = tokenizer(text).input_ids
    assert ids[-1] == tokenizer.eos_token_id == 1
    assert tokenizer.pad_token_id == 0
    assert 2 not in ids
    assert max(ids) < 512
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_latents_and_frames_have_the_size_of_a_trained_model(shared):
    latents = shared.adapter.components.normalise(shared.family.build_encoders().encode_video(moving_clips()))
    assert 0.4 < latents.std() < 2
    assert latents.mean().abs() < 0.7
    assert (latents[0] - latents[1]).std() > 0.1  # different clips, different latents
    video = shared.adapter.decode(torch.randn(2, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert 0.05 < video.std() < 0.4
    assert 0.3 < video.mean() < 0.7
    assert ((video == 0) | (video == 1)).float().mean() < 0.2
    assert video.std(dim=2).mean() > 0.01  # it moves


def test_finetuning_on_two_clips_lowers_the_loss(build):
    """AdamW, random noise and timesteps; judged on fixed ones."""
    built = build(trainable=True)
    adapter, handle = built.adapter, built.handle
    x0 = adapter.components.normalise(built.family.build_encoders().encode_video(moving_clips()))
    cond = adapter.encode_prompts(["a red square moving right", "a green square moving left"])
    generator = torch.Generator().manual_seed(0)
    fixed_noise, fixed_t = torch.randn(x0.shape, generator=generator), torch.tensor([800.0, 350.0])

    def loss(noise, t):
        prediction = adapter.predict(handle, adapter.add_noise(x0, noise, t), t, cond)
        return (prediction - adapter.training_target(x0, noise, t)).square().mean()

    with torch.no_grad():
        before = loss(fixed_noise, fixed_t).item()
    optimizer = torch.optim.AdamW(handle.trainable_parameters(), lr=3e-3)
    for _ in range(120):
        noise, t = torch.randn(x0.shape, generator=generator), torch.rand(2, generator=generator) * 1000
        optimizer.zero_grad()
        loss(noise, t).backward()
        torch.nn.utils.clip_grad_norm_(handle.trainable_parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        after = loss(fixed_noise, fixed_t).item()
    assert after < 0.6 * before, f"{before:.3f} -> {after:.3f}"


# --- encoders ----------------------------------------------------------------------------------------------------------
def test_encode_video_is_the_mean_of_the_vae(shared, pipeline):
    video = moving_clips()
    with torch.no_grad():
        expected = pipeline.vae.encode(video * 2 - 1).latent_dist.mean
    latents = shared.family.build_encoders().encode_video(video)
    assert latents.shape == (2, 16, 3, 8, 8)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)


def test_encode_text_is_unpadded_and_does_not_depend_on_its_batch(shared):
    encoders = shared.family.build_encoders()
    captions = ["a cat", "a red ball rolling left", ""]
    together = encoders.encode_text(captions)
    assert [tensor.shape[1] for tensor in together] == [32] * 3
    assert together[2].shape == (1, 32)
    assert len(together[1]) > len(together[0]) > 1
    for caption, embedding in zip(captions, together, strict=True):
        assert torch.equal(encoders.encode_text([caption])[0], embedding)
    padded = shared.adapter.encode_prompts(captions).embeddings
    assert all(torch.equal(padded[i, : len(e)], e) for i, e in enumerate(together))


def test_default_plan(shared, build, tiny_copy):
    plan = shared.family.build_encoders().default_plan
    assert (plan.fps, plan.geometry) == (16.0, fvd.VideoGeometry(num_frames=9, height=64, width=64))
    (tiny_copy / "fvd.json").unlink()
    plan = build(tiny_copy).family.build_encoders().default_plan
    assert plan == WAN_PLAN
    assert plan.geometry == fvd.VideoGeometry(num_frames=81, height=480, width=832)
    assert plan.fps == 16
    (tiny_copy / "fvd.json").write_text(json.dumps({"fps": 16}))
    with pytest.raises(ModelError, match="num_frames"):
        _ = build(tiny_copy).family.build_encoders().default_plan


def test_digest_follows_what_the_encodings_depend_on(build, tiny_copy, shared):
    first = shared.family.build_encoders().digest
    assert build(tiny_copy).family.build_encoders().digest == first  # wherever the folder lies
    assert build(tiny_copy, config={"max_text_tokens": 256}).family.build_encoders().digest != first
    transformer = tiny_copy / "transformer" / "diffusion_pytorch_model.safetensors"
    transformer.write_bytes(transformer.read_bytes())
    (tiny_copy / "scheduler" / "note.json").write_text("{}")
    assert build(tiny_copy).family.build_encoders().digest == first
    for part in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"):
        data = bytearray((tiny_copy / part).read_bytes())
        data[-1] ^= 1
        (tiny_copy / part).write_bytes(data)
        changed = build(tiny_copy).family.build_encoders().digest
        assert changed != first, part
        first = changed


def test_geometry_check(shared):
    encoders = shared.family.build_encoders()
    encoders.check_geometry(fvd.VideoGeometry(num_frames=81, height=480, width=832))
    with pytest.raises(FvdError, match=r"frames 80.*\n.*4k"):
        encoders.check_geometry(fvd.VideoGeometry(num_frames=80, height=480, width=832))
