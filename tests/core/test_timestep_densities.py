"""Densities and ranges of timesteps, as functions of the draws."""

from __future__ import annotations

import math

import pytest
import torch

from fvd.testing.toy.config import ToyConfig
from fvd.testing.toy.workbench import toy_family
from fvd.timesteps import inside, integers_inside, logit_normal, mode, unshifted

UNIFORM = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000


def test_logit_normal_has_the_quantiles_of_its_law():
    normal = torch.special.ndtri(UNIFORM)
    u = logit_normal(normal, mean=-0.5, std=1.5)
    back = (torch.logit(u) + 0.5) / 1.5
    torch.testing.assert_close(torch.special.ndtr(back), UNIFORM)
    assert float(logit_normal(torch.zeros(1), 1.0, 0.0)) == pytest.approx(1 / (1 + math.exp(-1)))


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.29, 2 / (math.pi - 2)])
def test_mode_is_a_falling_map_of_the_interval_onto_itself(scale):
    u = mode(UNIFORM, scale)
    assert (u.diff() <= 1e-12).all()
    ends = mode(torch.tensor([0.0, 1.0], dtype=torch.float64), scale)
    torch.testing.assert_close(ends, torch.tensor([1.0, 0.0], dtype=torch.float64))
    middle = ((u > 0.4) & (u < 0.6)).double().mean()
    assert (middle > 0.2 + 1e-3) == (scale > 0)


def test_inside_spans_its_range():
    t = inside(UNIFORM, 20.0, 980.0)
    assert 20 <= float(t.min()) < 20.1 < 979.9 < float(t.max()) < 980
    torch.testing.assert_close(t.mean(), torch.tensor(500.0, dtype=torch.float64))


def test_integers_are_equally_likely_and_both_ends_included():
    counts = torch.bincount(integers_inside(UNIFORM, 3, 12).long())
    assert counts.tolist() == [0, 0, 0] + [1000] * 10
    almost_one = torch.tensor([1 - 2**-24])
    assert integers_inside(almost_one, 0, 999).tolist() == [999.0]


@pytest.mark.parametrize("predicts", ["velocity", "noise"])
@pytest.mark.parametrize("shift", [None, 1.0, 5.0])
def test_unshifted_is_the_inverse_of_the_adapters_shift(predicts, shift):
    adapter = toy_family(predicts, config=ToyConfig(flow_shift=3.0)).build_adapter([])
    for t in (100.0, 500.0, 950.0):
        shifted = float(adapter.shift_and_clamp_timestep(torch.tensor([t]), shift))
        assert unshifted(adapter, shifted, shift) == pytest.approx(t, abs=0.05)
