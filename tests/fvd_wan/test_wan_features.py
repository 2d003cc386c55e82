"""Features of the real, tiny network."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel

import fvd
from fvd.features import captured_outputs
from fvd.recompute import recompute_activations
from fvd_wan.adapter import WanAdapter

LAST = 1


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def cond(raw_batch):
    return fvd.TextConditioning(raw_batch.tensors["text_embedding"], raw_batch.tensors["text_embedding_mask"])


def head_of(network: WanTransformer3DModel, feature, x_t, t, embeddings):
    """The velocity from the feature after the last block, by the network's own last layers (Wan 2.1's: a modulated norm, a
    projection, patches of 1 × 2 × 2 put back)."""
    with captured_outputs([[network.condition_embedder]]) as outputs:
        network(x_t, timestep=t, encoder_hidden_states=embeddings)
    time_embedding = outputs[0][0][0]
    shift, scale = (network.scale_shift_table + time_embedding.unsqueeze(1)).chunk(2, dim=1)
    tokens = feature.flatten(2).transpose(1, 2)
    patches = network.proj_out(network.norm_out(tokens.float()) * (1 + scale) + shift)
    batch, _, frames, height, width = feature.shape
    patches = patches.reshape(batch, frames, height, width, 1, 2, 2, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return patches.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def test_the_last_feature_fed_through_the_head_is_the_prediction(shared, cond):
    """On a grid of unequal sides: features whose rows and columns are swapped do not pass."""
    network, x_t, t = shared.handle.modules["transformer"], draw(2, 16, 3, 8, 12), torch.tensor([700.0, 30.0])
    with torch.no_grad():
        (feature,) = shared.adapter.bind(shared.handle).features(x_t, t, cond, layers=[LAST])
        assert feature.shape == (2, shared.adapter.feature_widths(shared.handle)[LAST], 3, 4, 6)
        velocity = shared.adapter.predict(shared.handle, x_t, t, cond)
        torch.testing.assert_close(head_of(network, feature, x_t, t, cond.embeddings), velocity, atol=1e-5, rtol=1e-5)


def test_a_token_is_where_its_patch_is(shared, cond):
    """Before attention mixes them, a change of one patch of x_t would change one token; after it, that token changes most."""
    x_t, t = draw(2, 16, 3, 8, 12), torch.tensor([700.0, 30.0])
    changed = x_t.clone()
    changed[:, :, 2, 2:4, 8:10] += 3.0
    with torch.no_grad():
        (one,), (other,) = (shared.adapter.features(shared.handle, x, t, cond, layers=[0]) for x in (x_t, changed))
    moved = (one - other).square().sum(dim=1)
    for sample in moved:
        assert sample.flatten().argmax() == 2 * 4 * 6 + 1 * 6 + 4


def test_gradient_to_x_t_by_finite_differences_in_float64(build, cond):
    built = build()
    network = built.handle.modules["transformer"].double()
    x_t, direction = draw(1, 16, 1, 4, 4).double(), draw(1, 16, 1, 4, 4, seed=1).double()
    weights = draw(1, 4, 96, seed=2).double()

    def functional(x):
        with captured_outputs([[network.blocks[LAST]]]) as outputs:
            network(x, timestep=torch.tensor([400.0]), encoder_hidden_states=cond.embeddings[:1].double())
        return (outputs[0][0] * weights).sum()

    x_t.requires_grad_()
    (gradient,) = torch.autograd.grad(functional(x_t), x_t)
    step = 1e-4
    with torch.no_grad():
        difference = (functional(x_t + step * direction) - functional(x_t - step * direction)) / (2 * step)
    # The network makes some of its modulation in float32 whatever its weights are.
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-3, atol=1e-3)


def test_frozen_parameters_get_no_gradient_and_trained_ones_as_far_as_the_layer(build, cond):
    for trainable in (True, False):
        built = build(trainable=trainable)
        x_t = draw(2, 16, 3, 8, 8).requires_grad_()
        (feature,) = built.adapter.features(built.handle, x_t, torch.tensor([900.0, 300.0]), cond, layers=[0])
        feature.square().mean().backward()
        assert bool(x_t.grad.any())
        blocks = built.handle.modules["transformer"].blocks
        assert [any(p.grad is not None for p in block.parameters()) for block in blocks] == [trainable, False]


def test_recomputed_blocks_have_the_same_features_and_gradients(build, cond):
    gradients = []
    for recomputed in (False, True):
        built = build(trainable=True)
        if recomputed:
            recompute_activations(built.family, built.handle)
        x_t = draw(2, 16, 3, 8, 8).requires_grad_()
        t = torch.tensor([900.0, 300.0])
        x0, features = built.adapter.bind(built.handle).predict_x0_with_features(x_t, t, cond, layers=[0, LAST])
        (x0.square().mean() + sum(feature.square().mean() for feature in features)).backward()
        gradients.append([x_t.grad, *(p.grad for p in built.handle.trainable_parameters())])
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again)


def test_each_sample_has_the_features_of_the_expert_of_its_timestep(build, tiny_path, cond, monkeypatch):
    one, other = build(trainable=False).handle.modules["transformer"], build().handle.modules["transformer"]
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    built = build()
    handle = fvd.RoleHandle("student", "wan", False, {"transformer": one, "transformer_2": other})
    adapter = built.adapter
    adapter.boundary_ratio = 0.875
    x_t, t = draw(2, 16, 3, 8, 8), torch.tensor([100.0, 950.0])  # the second expert's, then the first's
    with torch.no_grad():
        x0, (first, last) = adapter.bind(handle).predict_x0_with_features(x_t, t, cond, layers=[0, LAST])
        torch.testing.assert_close(x0, adapter.predict_x0(handle, x_t, t, cond))
        for sample, network in ((0, other), (1, one)):
            alone = fvd.RoleHandle("alone", "wan", False, {"transformer": network})
            own = slice(sample, sample + 1)
            text = fvd.TextConditioning(cond.embeddings[own], cond.mask[own])
            expected = adapter.features(alone, x_t[own], t[own], text, layers=[0, LAST])
            torch.testing.assert_close(first[own], expected[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(last[own], expected[1], atol=1e-5, rtol=1e-5)


def test_the_adapter_declares_what_its_family_wraps(shared):
    units = shared.family.shard_units(shared.handle)
    assert [units] == [list(blocks) for blocks in shared.adapter.feature_blocks(shared.handle)]
    assert WanAdapter.blocks_name == type(shared.family).blocks_name
