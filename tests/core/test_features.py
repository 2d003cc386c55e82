"""The primitives of features: the hidden states are those of the network's own forward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fvd
from fvd.features import captured_outputs, default_layers
from fvd.testing.toy.network import FlowVelocity, Shape, random_network
from fvd.testing.toy.workbench import toy_batch, toy_family


@pytest.fixture(params=["velocity", "noise"])
def toy(request):
    """Adapter, trained role, frozen role, batch."""
    family = toy_family(request.param)
    student = family.load_role("student", fvd.RoleConfig(path="random:1", trainable=True))
    teacher = family.load_role("teacher", fvd.RoleConfig(path="random:2", trainable=False))
    adapter = family.build_adapter(fvd.RoleManager([student, teacher]))
    return adapter, student, teacher, adapter.prepare_batch(toy_batch(family, 4), latents_source="data")


def timesteps(batch):
    return torch.tensor([100.0, 400.0, 700.0, 950.0])[: batch.batch_size]


def head_of(network, hidden, x_t, time, weights):
    """The prediction from the hidden state after the last block, by the network's own last layers."""
    with captured_outputs([[network.condition]]) as outputs:
        network(x_t, time, weights)
    condition = outputs[0][0]
    correction = network.outputs(hidden * (1 + network.scale(condition)))
    points, std = x_t.flatten(1), network.shape.data_std
    alpha, sigma = (c[:, None] for c in network._parametrisation.signal_and_noise(time))
    spread = ((alpha * std) ** 2 + sigma**2).sqrt()
    x0 = alpha * std**2 / spread**2 * points + sigma * std / spread * correction
    noise = sigma / spread**2 * points - alpha * std / spread * correction
    return network._parametrisation.prediction(x0, noise).reshape(x_t.shape)


def test_the_last_feature_fed_through_the_head_is_the_prediction(toy):
    adapter, student, _, batch = toy
    t, network = timesteps(batch), student.modules["transformer"]
    (hidden,) = adapter.features(student, batch.latents, t, batch.cond, layers=[len(network.blocks) - 1])
    assert hidden.shape == (4, network.shape.width, 1, 1, 1)
    prediction = adapter.predict(student, batch.latents, t, batch.cond)
    assert torch.equal(head_of(network, hidden.flatten(1), batch.latents, t / 1000, batch.cond), prediction)


def test_a_layer_is_a_function_of_the_one_before(toy):
    adapter, student, _, batch = toy
    t, network = timesteps(batch), student.modules["transformer"]
    first, second = adapter.features(student, batch.latents, t, batch.cond, layers=[0, 1])
    with captured_outputs([[network.condition]]) as outputs:
        network(batch.latents, t / 1000, batch.cond)
    assert torch.equal(network.blocks[1](first.flatten(1), outputs[0][0]), second.flatten(1))


def test_prediction_and_features_are_of_one_forward(toy):
    adapter, student, _, batch = toy
    t, view = timesteps(batch), adapter.bind(student)
    calls = []
    hook = student.modules["transformer"].register_forward_hook(lambda *_: calls.append(1))
    x0, features = view.predict_x0_with_features(batch.latents, t, batch.cond, layers=[1, 0])
    hook.remove()
    assert len(calls) == 1
    assert torch.equal(x0, view.predict_x0(batch.latents, t, batch.cond))
    for feature, again in zip(features, view.features(batch.latents, t, batch.cond, layers=[1, 0]), strict=True):
        assert torch.equal(feature, again)


def test_gradient_to_x_t_by_finite_differences_in_float64():
    network = random_network(FlowVelocity(), Shape(2, 8, 1.4, width=8), seed=3).double()
    x_t = torch.randn(3, 2, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    time, weights = torch.tensor([0.2, 0.5, 0.9]).double(), torch.full((3, 8), 1 / 8).double()

    def features(x_t):
        with captured_outputs([[block] for block in network.blocks]) as outputs:
            network(x_t, time, weights)
        return tuple(calls[0] for calls in outputs)

    assert torch.autograd.gradcheck(features, (x_t,))


def test_gradient_reaches_x_t_through_a_frozen_role_and_no_parameter_of_it(toy):
    adapter, student, teacher, batch = toy
    for handle in (student, teacher):
        x_t = batch.latents.clone().requires_grad_()
        features = adapter.bind(handle).features(x_t, timesteps(batch), batch.cond, layers=[0, 1])
        sum(feature.square().sum() for feature in features).backward()
        assert bool((x_t.grad != 0).all())
        reached = [p.grad is not None for p in handle.modules["transformer"].inputs.parameters()]
        assert all(reached) if handle.trainable else not any(reached)
        # What comes after the blocks has no part in them.
        assert all(p.grad is None for p in handle.modules["transformer"].outputs.parameters())


def test_no_hook_stays_whatever_happens(toy, monkeypatch):
    adapter, student, _, batch = toy
    blocks = student.modules["transformer"].blocks
    adapter.features(student, batch.latents, timesteps(batch), batch.cond, layers=[0])

    def fail(*_args, **_kwargs):
        raise ValueError("out of memory")

    monkeypatch.setattr(adapter, "predict_x0", fail)
    with pytest.raises(ValueError, match="out of memory"):
        adapter.features(student, batch.latents, timesteps(batch), batch.cond, layers=[0])
    assert not any(block._forward_hooks for block in blocks)


def test_the_exact_denoiser_has_no_features():
    family = toy_family()
    teacher = family.load_role("teacher", fvd.RoleConfig(path="analytic", trainable=False))
    adapter = family.build_adapter(fvd.RoleManager([teacher]))
    with pytest.raises(fvd.FvdError, match="exact denoiser") as raised:
        adapter.bind(teacher).feature_widths()
    assert "random" in raised.value.cure


@pytest.mark.parametrize(("layers", "said"), [([2], "layer 2"), ([-1, 0], "layer -1"), ([], "no layer")])
def test_a_block_that_there_is_not_is_refused(toy, layers, said):
    adapter, student, _, batch = toy
    with pytest.raises(fvd.FvdError, match=said) as raised:
        adapter.features(student, batch.latents, timesteps(batch), batch.cond, layers=layers)
    assert raised.value.cure == "Layers are 0 to 1."


def test_default_layers_are_spaced_over_the_second_half():
    assert default_layers(30) == (15, 22, 29)
    assert default_layers(40) == (20, 29, 39)
    assert default_layers(2) == (1,)
    assert default_layers(1) == (0,)


class Twice(nn.Module):
    """A network that runs its block twice."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(2, 2)])

    def forward(self, x):
        return self.blocks[0](self.blocks[0](x))


class TwiceAdapter(fvd.BlockFeatures, fvd.FlowMatchingAdapter):
    def __init__(self, feature=None):
        self.feature = feature

    def prepare_batch(self, raw_batch, *, latents_source):
        raise NotImplementedError

    def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
        return handle.modules["transformer"](x_t.flatten(1)).reshape(x_t.shape)

    def feature_blocks(self, handle):
        return [list(handle.modules["transformer"].blocks)]

    def feature_widths(self, handle):
        return [2]

    def block_feature(self, output, x_t):
        return output[:, :, None, None, None] if self.feature is None else self.feature(output)


def test_a_block_that_runs_twice_has_no_one_feature():
    handle = fvd.RoleHandle("student", "twice", True, {"transformer": Twice()})
    with pytest.raises(fvd.PluginError, match="ran 2 times"):
        TwiceAdapter().bind(handle).features(torch.zeros(1, 2, 1, 1, 1), torch.zeros(1), None, layers=[0])


def test_the_role_view_looks_at_the_shape():
    network = nn.Sequential()
    network.blocks = nn.ModuleList([nn.Linear(2, 2)])
    network.forward = lambda x: network.blocks[0](x)
    handle = fvd.RoleHandle("student", "once", True, {"transformer": network})
    x_t, t = torch.zeros(1, 2, 1, 1, 1), torch.zeros(1)
    (feature,) = TwiceAdapter().bind(handle).features(x_t, t, None, layers=[0])
    assert feature.shape == (1, 2, 1, 1, 1)
    with pytest.raises(fvd.PluginError, match=r"shape \[1, 2, T', H', W'\], got \[1, 2\]"):
        TwiceAdapter(lambda output: output).bind(handle).features(x_t, t, None, layers=[0])


def test_an_adapter_without_features_says_so():
    class Plain(fvd.FlowMatchingAdapter):
        def prepare_batch(self, raw_batch, *, latents_source):
            raise NotImplementedError

    handle = fvd.RoleHandle("student", "plain", True, {})
    with pytest.raises(fvd.PluginError, match="'features'"):
        Plain().features(handle, torch.zeros(1, 2, 1, 1, 1), torch.zeros(1), None, layers=[0])
