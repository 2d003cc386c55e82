"""The primitives on the real, tiny network."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections import Counter

import pytest
import torch

import fvd
from fvd.errors import FvdError
from fvd.recompute import recompute_activations


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def cond(raw_batch):
    return fvd.TextConditioning(raw_batch.tensors["text_embedding"], raw_batch.tensors["text_embedding_mask"])


# --- prediction --------------------------------------------------------------------------------------------------------
def test_prediction_identities(shared, cond):
    """x_t = (1 − σ) x0̂ + σ noisê and v̂ = noisê − x0̂, whatever the network says."""
    adapter, x_t, t = shared.adapter, draw(2, 16, 3, 8, 8), torch.tensor([937.5, 120.0])
    with torch.no_grad():
        velocity = adapter.predict(shared.handle, x_t, t, cond)
        x0 = adapter.predict_x0(shared.handle, x_t, t, cond)
        noise = adapter.predict_noise(shared.handle, x_t, t, cond)

    assert velocity.dtype == x0.dtype == noise.dtype == torch.float32
    assert velocity.abs().mean() > 0.01
    torch.testing.assert_close(noise - x0, velocity, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(adapter.add_noise(x0, noise, t), x_t, atol=1e-5, rtol=1e-5)
    sigma = (t.double() / 1000).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(x0.double(), x_t.double() - sigma * velocity.double(), atol=1e-6, rtol=1e-6)


def test_predict_is_the_network(shared, cond):
    x_t, t = draw(2, 16, 3, 8, 8), torch.tensor([700.0, 30.0])
    with torch.no_grad():
        expected = shared.handle.modules["transformer"](x_t, timestep=t, encoder_hidden_states=cond.embeddings).sample
        assert torch.equal(shared.adapter.predict(shared.handle, x_t, t, cond), expected)
        assert torch.equal(shared.adapter.bind(shared.handle).predict(x_t, t, cond), expected)


def test_every_sample_has_its_own_timestep_and_text(shared, cond):
    x_t, t = draw(2, 16, 3, 8, 8), torch.tensor([950.0, 50.0])
    predict = torch.no_grad()(
        lambda s: shared.adapter.predict(shared.handle, x_t[s], t[s], fvd.TextConditioning(cond.embeddings[s], cond.mask[s]))
    )

    together = predict(slice(0, 2))

    torch.testing.assert_close(together, torch.cat([predict(slice(0, 1)), predict(slice(1, 2))]), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        swapped = shared.adapter.predict(shared.handle, x_t, t.flip(0), cond)
    assert (together - swapped).abs().max() > 1e-3


def test_text_reaches_the_prediction(shared, cond):
    x_t, t = draw(2, 16, 3, 8, 8), torch.tensor([950.0, 50.0])
    zero = shared.adapter.zero_conditioning(cond)
    assert torch.equal(zero.embeddings, torch.zeros(2, 512, 32))
    with torch.no_grad():
        difference = shared.adapter.predict(shared.handle, x_t, t, cond) - shared.adapter.predict(shared.handle, x_t, t, zero)
    assert difference.abs().max() > 1e-4


def test_gradients_reach_every_trainable_weight_and_no_frozen_one(build, cond):
    built = build(trainable=True)
    built.adapter.predict(built.handle, draw(2, 16, 3, 8, 8), torch.tensor([900.0, 300.0]), cond).square().mean().backward()
    without = [name for name, p in built.handle.modules["transformer"].named_parameters() if p.grad is None]
    assert without == []
    assert all(p.dtype == torch.float32 for p in built.handle.trainable_parameters())

    frozen = build(trainable=False)
    assert frozen.handle.trainable_parameters() == []
    assert not frozen.adapter.predict(frozen.handle, draw(2, 16, 3, 8, 8), torch.tensor([900.0, 300.0]), cond).requires_grad


def test_recomputing_activations_changes_no_gradient_and_runs_each_block_twice(build, cond):
    gradients, calls, names = [], [], []
    for recomputed in (False, True):
        built = build(trainable=True)
        blocks = built.family.shard_units(built.handle)
        calls.append(Counter())
        for index, block in enumerate(blocks):  # inside the block, where a recomputation passes again
            block.ffn.register_forward_hook(lambda *_, index=index, calls=calls[-1]: calls.update([index]))
        if recomputed:
            recompute_activations(built.family, built.handle)
        built.adapter.predict(built.handle, draw(2, 16, 3, 8, 8), torch.tensor([900.0, 300.0]), cond).square().mean().backward()
        gradients.append([p.grad for p in built.handle.trainable_parameters()])
        names.append(list(built.handle.modules["transformer"].state_dict()))
    assert calls == [{0: 1, 1: 1}, {0: 2, 1: 2}]
    assert names[0] == names[1]
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_recomputing_costs_nothing_without_gradients(build, cond):
    built = build(trainable=True)
    x_t, t = draw(2, 16, 3, 8, 8), torch.tensor([900.0, 300.0])
    with torch.no_grad():
        plain = built.adapter.predict(built.handle, x_t, t, cond)
        recompute_activations(built.family, built.handle)
        assert torch.equal(built.adapter.predict(built.handle, x_t, t, cond), plain)


def test_a_family_without_blocks_cannot_recompute(build, monkeypatch):
    """Silence would look like saved memory."""
    built = build(trainable=True)
    monkeypatch.setattr(type(built.family), "shard_units", lambda self, handle: [])
    with pytest.raises(FvdError, match=r"family wan does not say.*\n.*enable_gradient_checkpointing_type"):
        recompute_activations(built.family, built.handle)


# --- precision ---------------------------------------------------------------------------------------------------------
def test_frozen_roles_are_stored_in_the_autocast_dtype_and_trained_ones_in_float32(build):
    frozen, trained = (
        build(trainable=trainable, autocast_dtype=torch.bfloat16).handle.modules["transformer"] for trainable in (False, True)
    )
    assert {p.dtype for p in trained.parameters()} == {torch.float32}
    assert frozen.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert frozen.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    plain = build(trainable=False).handle.modules["transformer"]
    assert {p.dtype for p in plain.parameters()} == {torch.float32}


def test_nothing_is_autocast_on_the_cpu(build, cond):
    """There a trained role computes in float32, whatever the context says."""
    seen = []
    built = build(trainable=True, autocast_dtype=torch.bfloat16)
    built.handle.modules["transformer"].blocks[0].ffn.register_forward_hook(
        lambda module, inputs, output: seen.append((output.dtype, torch.is_autocast_enabled("cpu")))
    )
    x_t, t = draw(2, 16, 3, 8, 8), torch.tensor([900.0, 300.0])
    velocity = built.adapter.predict(built.handle, x_t, t, cond)
    assert seen == [(torch.float32, False)]
    plain = build(trainable=True)
    assert torch.equal(velocity, plain.adapter.predict(plain.handle, x_t, t, cond))


def test_unknown_attention_is_refused(shared, cond):
    with pytest.raises(FvdError, match="attention 'sparse'"):
        shared.adapter.bind(shared.handle).predict(draw(2, 16, 3, 8, 8), torch.tensor([1.0, 2.0]), cond, attn_kind="sparse")


# --- latents -----------------------------------------------------------------------------------------------------------
def test_latents_are_normalised_with_the_statistics_of_the_vae(adapter, pipeline, raw_batch):
    z = raw_batch.tensors["vae_latent"]
    mean, std = (torch.tensor(pipeline.vae.config[key], dtype=torch.float64) for key in ("latents_mean", "latents_std"))
    expected = (z.double() - mean.view(16, 1, 1, 1)) / std.view(16, 1, 1, 1)

    latents = adapter.prepare_batch(raw_batch, latents_source="data").latents

    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents.double(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(adapter.components.denormalise(latents), z, atol=1e-5, rtol=1e-5)


def test_zero_latents_take_their_shape_from_the_data(adapter, raw_batch):
    batch = adapter.prepare_batch(raw_batch, latents_source="zeros")
    assert torch.equal(batch.latents, torch.zeros(2, 16, 3, 8, 8))
    assert batch.info == raw_batch.info


def test_zero_latents_of_text_only_data(build, raw_batch):
    del raw_batch.tensors["vae_latent"]
    geometry = fvd.VideoGeometry(num_frames=81, height=480, width=832)
    sizes = [
        build(geometry=geometry, latent_frames=frames).adapter.prepare_batch(raw_batch, latents_source="zeros").latents.shape
        for frames in (None, 5)
    ]
    assert sizes == [(2, 16, 21, 60, 104), (2, 16, 5, 60, 104)]
    with pytest.raises(FvdError, match=r"num_height, training.num_width and training.num_frames"):
        build().adapter.prepare_batch(raw_batch, latents_source="zeros")
    with pytest.raises(FvdError, match="no vae_latent"):
        build().adapter.prepare_batch(raw_batch, latents_source="data")


@pytest.mark.parametrize(
    ("frames", "height", "width", "words"),
    [(10, 64, 64, "frames 10"), (9, 60, 64, "height 60"), (9, 64, 8, "width 8"), (0, 0, 0, "height 0.*width 0.*frames 0")],
)
def test_impossible_sizes_are_refused(adapter, frames, height, width, words):
    with pytest.raises(FvdError, match=words):
        adapter.latent_shape(fvd.VideoGeometry(num_frames=frames, height=height, width=width))


@pytest.mark.parametrize("shape", [(2, 8, 3, 8, 8), (2, 16, 3, 7, 8)])
def test_latents_of_another_model_are_refused(adapter, raw_batch, shape):
    raw_batch.tensors["vae_latent"] = torch.zeros(shape)
    with pytest.raises(FvdError, match="vae_latent has shape"):
        adapter.prepare_batch(raw_batch, latents_source="data")


def test_text_of_another_model_is_refused(adapter, raw_batch):
    raw_batch.tensors["text_embedding"] = torch.zeros(2, 512, 4096)
    with pytest.raises(FvdError, match=r"\[512, 4096\].*\[512, 32\]"):
        adapter.prepare_batch(raw_batch, latents_source="data")


# --- conditioning ------------------------------------------------------------------------------------------------------
def test_dropped_samples_get_the_empty_prompt(build, raw_batch):
    adapter = build(conditioning_dropout_rate=0.1).adapter
    adapter.on_train_start()
    dropped = dataclasses.replace(raw_batch, dropped=torch.tensor([True, False]))

    embeds = adapter.prepare_batch(dropped, latents_source="data").cond.embeddings

    assert torch.equal(embeds[0], adapter.encode_prompts([""]).embeddings[0])
    assert torch.equal(embeds[1], raw_batch.tensors["text_embedding"][1])
    assert embeds[0].abs().sum() > 0


def test_no_text_encoder_is_loaded_where_nothing_is_dropped(build, raw_batch, monkeypatch):
    def fail(*_):
        raise AssertionError("the text encoder was loaded")

    monkeypatch.setattr("fvd.diffusers_format.components.load_text_encoder", fail)
    monkeypatch.setattr("fvd.diffusers_format.components.load_network", fail)
    adapter = build().adapter
    adapter.on_train_start()
    adapter.prepare_batch(raw_batch, latents_source="data")
    with pytest.raises(FvdError, match="empty prompt"):
        adapter.prepare_batch(dataclasses.replace(raw_batch, dropped=torch.tensor([True, False])), latents_source="data")


def test_negative_conditioning_is_explicit_and_idempotent(build, raw_batch, monkeypatch):
    adapter = build(config={"negative_prompt": "static"}).adapter
    adapter.encode_prompts(["sampling during validation"])
    assert adapter.prepare_batch(raw_batch, latents_source="data").uncond is None
    with pytest.raises(FvdError, match="ensure_negative_conditioning"):
        adapter.negative_conditioning(1)

    adapter.ensure_negative_conditioning()
    adapter.release()
    monkeypatch.setattr("fvd.diffusers_format.components.load_text_encoder", lambda *_: pytest.fail("encoded twice"))
    adapter.ensure_negative_conditioning()
    uncond = adapter.prepare_batch(raw_batch, latents_source="zeros").uncond

    monkeypatch.undo()
    expected = adapter.encode_prompts(["static", "static"]).embeddings
    assert torch.equal(uncond.embeddings, expected)
    assert torch.equal(adapter.negative_conditioning(2).embeddings, expected)


def test_release_frees_vae_and_text_encoder(build):
    adapter = build().adapter
    adapter.encode_prompts(["a cat"])
    adapter.decode(torch.zeros(1, 16, 1, 8, 8))
    watched = [weakref.ref(module) for module in (adapter.components.vae(), adapter.components.text_encoder())]
    weights = [weakref.ref(next(ref().parameters())) for ref in watched]
    assert all(ref() is not None for ref in (*watched, *weights))

    adapter.release()

    assert [ref() for ref in (*watched, *weights)] == [None] * 4
    gc.collect()
    assert adapter.decode(torch.zeros(1, 16, 1, 8, 8)).shape == (1, 3, 1, 64, 64)  # loads again


# --- schedule ----------------------------------------------------------------------------------------------------------
def test_schedulers_are_fresh_and_carry_the_flow_shift(build):
    adapter = build(config={"flow_shift": 5.0}).adapter
    unipc, euler = adapter.scheduler("ode"), adapter.scheduler("sde")
    assert type(unipc).__name__ == "UniPCMultistepScheduler"
    assert unipc.config.flow_shift == 5.0
    assert type(euler).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert euler.shift == 5.0
    assert adapter.scheduler("ode") is not unipc
    assert type(build(config={"ode_solver": "euler"}).adapter.scheduler("ode")).__name__ == "FlowMatchEulerDiscreteScheduler"
    with pytest.raises(FvdError, match="'sdde'"):
        adapter.scheduler("sdde")


def test_shifted_timesteps_are_the_formula(build):
    t = torch.tensor([0.0, 250.0, 500.0, 999.0, 1000.0])
    sigma = t.double() / 1000
    expected = 1000 * 8 * sigma / (1 + 7 * sigma)
    actual = build(config={"flow_shift": 8.0}).adapter.shift_and_clamp_timestep(t)
    torch.testing.assert_close(actual.double(), expected, atol=1e-4, rtol=0)
