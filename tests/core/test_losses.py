"""Identities of the losses and of guidance, as pure functions."""

from __future__ import annotations

import math

import pytest
import torch

from fvd.guidance import guided
from fvd.losses import NORMALIZER_EPSILON, distribution_matching_loss, matching_gradient, regression_loss, squared_error

SHAPE = (3, 2, 2, 3, 3)


@pytest.fixture
def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, fake, real = (torch.randn(SHAPE, generator=generator) for _ in range(3))
    return x0, fake, real


def student_gradient(x0: torch.Tensor, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    x0 = x0.clone().requires_grad_()
    distribution_matching_loss(x0, matching_gradient(x0, fake, real)).backward()
    return x0.grad


def test_golden_numbers():
    x0 = torch.tensor([[1.0, 2.0]]).view(1, 1, 1, 1, 2).requires_grad_()
    real = torch.tensor([[0.0, 5.0]]).view(1, 1, 1, 1, 2)  # |x - R| = 1, 3: w = 2
    fake = torch.tensor([[1.0, 1.0]]).view(1, 1, 1, 1, 2)  # F - R = 1, -4: g = 0.5, -2
    gradient = matching_gradient(x0, fake, real)
    assert gradient.normalizer.flatten().tolist() == [2.0]
    assert gradient.value.flatten().tolist() == [0.5, -2.0]
    loss = distribution_matching_loss(x0, gradient)
    loss.backward()
    assert loss.item() == 0.5 * (0.25 + 4.0) / 2
    assert x0.grad.flatten().tolist() == [0.25, -1.0]


def test_gradient_is_g_over_numel(tensors):
    x0, fake, real = tensors
    want = torch.stack([(f - r) / (x - r).abs().mean() for x, f, r in zip(*tensors, strict=True)]) / x0.numel()
    torch.testing.assert_close(student_gradient(x0, fake, real), want, rtol=1e-5, atol=1e-8)


def test_descending_moves_the_sample_towards_the_teacher(tensors):
    x0, _, real = tensors
    stepped = x0 - student_gradient(x0, x0, real) * x0.numel() * 0.1
    assert (stepped - real).square().mean() < (x0 - real).square().mean()


def test_equal_scores_give_exactly_zero(tensors):
    x0, fake, _ = tensors
    assert torch.equal(student_gradient(x0, fake, fake), torch.zeros(SHAPE))


@pytest.mark.parametrize("factor", [1e-2, 7.0, 1e3])
def test_scale_invariance(tensors, factor):
    plain = matching_gradient(*tensors).value
    scaled = matching_gradient(*(factor * tensor for tensor in tensors)).value
    torch.testing.assert_close(scaled, plain, rtol=1e-5, atol=1e-7)


def test_samples_do_not_influence_each_other(tensors):
    x0, fake, real = tensors
    together = student_gradient(x0, fake, real)
    changed = student_gradient(x0, torch.cat([fake[:1], 50 * fake[1:]]), torch.cat([real[:1], 0 * real[1:]]))
    assert torch.equal(changed[0], together[0])
    alone = student_gradient(x0[:1], fake[:1], real[:1])
    torch.testing.assert_close(alone / len(x0), together[:1])


def test_normalizer_has_a_floor(tensors):
    x0, _, _ = tensors
    gradient = matching_gradient(x0, x0 + 1e-6, x0)
    assert torch.equal(gradient.normalizer.flatten(), torch.full((3,), NORMALIZER_EPSILON))
    assert gradient.kept.all()
    assert gradient.value.abs().max() < 0.2  # (F - R) / floor; without it 1e-6 / 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["x0", "fake", "real"])
def test_non_finite_sample_is_dropped_and_the_others_keep_their_gradient(tensors, where, bad):
    clean = student_gradient(*tensors)
    named = dict(zip(("x0", "fake", "real"), (tensor.clone() for tensor in tensors), strict=True))
    named[where][1, 0, 0, 0, 0] = bad
    x0 = named["x0"].requires_grad_()
    gradient = matching_gradient(x0, named["fake"], named["real"])
    assert gradient.kept.tolist() == [True, False, True]
    loss = distribution_matching_loss(x0, gradient)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.equal(x0.grad[1], torch.zeros(SHAPE[1:]))
    assert torch.equal(x0.grad[[0, 2]], clean[[0, 2]])  # the dropped sample still counts in the mean
    kept = gradient.normalizer[[0, 2]].mean()
    mean = gradient.mean_over_kept(gradient.normalizer.flatten())
    torch.testing.assert_close(mean.total / mean.weight, kept)


def test_all_samples_dropped_is_zero_not_nan():
    bad = torch.full(SHAPE, math.nan)
    gradient = matching_gradient(bad, bad, bad)
    assert distribution_matching_loss(bad, gradient) == 0
    mean = gradient.mean_over_kept(gradient.normalizer.flatten())
    assert (mean.total, mean.weight) == (0, 0)  # not logged


def test_half_precision_inputs_are_computed_in_float32(tensors):
    x0, fake, real = (tensor.to(torch.bfloat16) for tensor in tensors)
    want = matching_gradient(x0.float(), fake.float(), real.float())
    got = matching_gradient(x0, fake, real)
    assert torch.equal(got.value, want.value)
    assert distribution_matching_loss(x0, got).dtype == torch.float32
    assert regression_loss(x0, fake) == ((x0.float() - fake.float()) ** 2).mean()


def test_normalizer_of_each_frame_or_of_the_whole_batch(tensors):
    x0, fake, real = (tensor.double() for tensor in tensors)
    frames = matching_gradient(*tensors, over="frame").value.double()
    for b in range(SHAPE[0]):
        for frame in range(SHAPE[2]):
            at = (b, slice(None), frame)
            want = (fake[at] - real[at]) / (x0[at] - real[at]).abs().mean()
            torch.testing.assert_close(frames[at], want, rtol=1e-5, atol=1e-6)
    batch = matching_gradient(*tensors, over="batch").value.double()
    torch.testing.assert_close(batch, (fake - real) / (x0 - real).abs().mean(), rtol=1e-5, atol=1e-6)


def test_only_the_batch_normalizer_lets_samples_influence_each_other(tensors):
    x0, fake, real = tensors
    far = torch.cat([real[:1], 100 + real[1:]])
    for over, independent in (("sample", True), ("frame", True), ("batch", False)):
        first, second = (matching_gradient(x0, fake, other, over=over).value[0] for other in (real, far))
        assert torch.equal(first, second) == independent


@pytest.mark.parametrize(("guard", "expected"), [("floor", 0.5), ("add", 0.75), ("none", 0.25)])
def test_guards(guard, expected):
    x0 = torch.full((1, 1, 1, 1, 2), 0.25)
    gradient = matching_gradient(x0, x0, torch.zeros_like(x0), guard=guard, epsilon=0.5)
    assert gradient.normalizer.item() == expected


def test_without_a_guard_what_would_be_infinite_is_dropped(tensors):
    x0, fake, _ = tensors
    gradient = matching_gradient(x0, fake, x0, guard="none")
    assert not gradient.kept.any()
    assert torch.equal(gradient.value, torch.zeros(SHAPE))


def test_squared_error_is_the_regression_loss_sample_by_sample(tensors):
    x0, fake, _ = tensors
    torch.testing.assert_close(squared_error(x0, fake).mean(), regression_loss(x0, fake))
    assert squared_error(x0, fake)[1] == ((x0[1] - fake[1]) ** 2).mean()


def test_guidance_conventions(tensors):
    cond, uncond, _ = tensors
    offset = cond + 3.5 * (cond - uncond)
    torch.testing.assert_close(guided(cond, uncond, 3.5 + 1), offset, rtol=1e-5, atol=1e-5)
    assert torch.equal(guided(cond, uncond, 0.0), uncond)
