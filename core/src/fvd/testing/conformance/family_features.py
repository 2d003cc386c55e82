"""B120: hidden states of the networks behind the primitives."""

from __future__ import annotations

import torch
from torch import Tensor

from fvd.adapters import RoleView
from fvd.errors import FvdError
from fvd.features import default_layers
from fvd.roles import RoleHandle
from fvd.specs import FEATURE_PRIMITIVES
from fvd.testing.conformance.asserts import require, require_close, require_different
from fvd.testing.conformance.examination import Subject
from fvd.testing.conformance.family_build import FamilyBench


def features(subject: Subject) -> None:
    """B120: their shapes, in the order asked for; those of a batch are those of its samples; the forward that gives them gives
    the same x0; they keep the graph to x_t, and leave nothing behind in the network."""
    bench = subject.family
    bench.require_primitives(*FEATURE_PRIMITIVES)
    frozen = bench.load_role("frozen", bench.path, trainable=False)
    view = bench.adapter.bind(frozen)
    widths = view.feature_widths()
    units, networks = len(bench.family.shard_units(frozen)), len(frozen.modules)
    require(
        units in (0, len(widths) * networks),
        f"feature_widths counts {len(widths)} blocks a network, and shard_units names {units} of {networks}",
    )
    layers = list(default_layers(len(widths)))
    found = _features(bench, view, bench.noise(), layers)
    for feature, layer in zip(found, layers, strict=True):
        one, other = feature
        require_different(one, other, f"features of layer {layer} are the same for two samples: do they come from x_t?")
    backwards = _features(bench, view, bench.noise(), layers[::-1])
    for feature, again in zip(found, backwards[::-1], strict=True):
        require_close(again, feature, "features must come in the order of `layers`")
    _check_refusal(bench, frozen, len(widths))
    _check_forward(bench, view, layers, found)
    _check_gradient(bench, frozen, layers)


@torch.no_grad()
def _features(bench: FamilyBench, view: RoleView, x_t: Tensor, layers: list[int]) -> list[Tensor]:
    return view.features(x_t, bench.t(0.3, 0.8), bench.batch.cond, layers=layers)


@torch.no_grad()
def _check_refusal(bench: FamilyBench, handle: RoleHandle, blocks: int) -> None:
    try:
        bench.adapter.features(handle, bench.noise(), bench.t(0.5), bench.batch.cond, layers=[blocks])
    except FvdError:
        return
    require(False, f"features of layer {blocks} of {blocks} blocks must be refused with a FvdError")


@torch.no_grad()
def _check_forward(bench: FamilyBench, view: RoleView, layers: list[int], found: list[Tensor]) -> None:
    x_t, t, cond = bench.noise(), bench.t(0.3, 0.8), bench.batch.cond
    plain = view.predict_x0(x_t, t, cond)
    x0, features = view.predict_x0_with_features(x_t, t, cond, layers=layers)
    require_close(x0, plain, "predict_x0_with_features must give the x0 of predict_x0")
    for feature, expected in zip(features, found, strict=True):
        require_close(feature, expected, "predict_x0_with_features must give the features of features")
    require_close(view.predict_x0(x_t, t, cond), plain, "predict_x0 must be the same after features have been asked for")
    for position in range(len(x_t)):
        alone = view.features(
            x_t[position : position + 1], t[position : position + 1], bench.single(position).cond, layers=layers
        )
        for feature, expected in zip(alone, found, strict=True):
            require_close(feature[0], expected[position], "features of a batch must be those of its samples")


def _check_gradient(bench: FamilyBench, frozen: RoleHandle, layers: list[int]) -> None:
    x_t = bench.noise().requires_grad_()
    features = bench.adapter.bind(frozen).features(x_t, bench.t(0.5), bench.batch.cond, layers=layers)
    require(all(feature.requires_grad for feature in features), "features of a frozen role must keep the graph to x_t")
    (gradient,) = torch.autograd.grad(features[-1].square().mean(), x_t, allow_unused=True)
    require(gradient is not None and bool(gradient.any()), "no gradient reaches x_t through the features of a frozen role")
