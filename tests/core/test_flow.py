"""Identities of flow matching."""

from __future__ import annotations

import pytest
import torch

from fvd import flow

SHAPE = (3, 2, 4, 3, 3)
SHIFTS = [0.5, 1.0, 3.0, 5.0, 8.0]


@pytest.fixture
def x0_noise_sigma() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)
    return x0, noise, torch.tensor([0.1, 0.5, 0.9])


def test_add_noise_is_the_interpolation(x0_noise_sigma):
    x0, noise, sigma = x0_noise_sigma
    x_t = flow.add_noise(x0, noise, sigma)
    for b, s in enumerate((0.1, 0.5, 0.9)):
        torch.testing.assert_close(x_t[b], (1 - s) * x0[b] + s * noise[b])


def test_ends_of_the_path(x0_noise_sigma):
    x0, noise, _ = x0_noise_sigma
    assert torch.equal(flow.add_noise(x0, noise, torch.zeros(3)), x0)
    assert torch.equal(flow.add_noise(x0, noise, torch.ones(3)), noise)


def test_velocity_is_the_derivative_of_the_path(x0_noise_sigma):
    x0, noise, sigma = x0_noise_sigma
    step = 1e-3
    forward = flow.add_noise(x0, noise, sigma + step) - flow.add_noise(x0, noise, sigma - step)
    torch.testing.assert_close(forward / (2 * step), noise - x0, rtol=1e-3, atol=1e-3)


def test_velocity_gives_back_x0_and_noise(x0_noise_sigma):
    x0, noise, sigma = x0_noise_sigma
    x_t = flow.add_noise(x0, noise, sigma)
    torch.testing.assert_close(flow.velocity_to_x0(noise - x0, x_t, sigma), x0, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(flow.velocity_to_noise(noise - x0, x_t, sigma), noise, rtol=1e-5, atol=1e-6)


def test_x0_and_noise_of_one_velocity_lie_on_one_path(x0_noise_sigma):
    x_t, velocity, sigma = x0_noise_sigma
    x0, noise = flow.velocity_to_x0(velocity, x_t, sigma), flow.velocity_to_noise(velocity, x_t, sigma)
    torch.testing.assert_close(noise - x0, velocity, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(flow.add_noise(x0, noise, sigma), x_t, rtol=1e-5, atol=1e-5)


def test_low_precision_latents_are_noised_in_float32(x0_noise_sigma):
    x0, noise, sigma = x0_noise_sigma
    half = x0.to(torch.bfloat16)
    got = flow.add_noise(half, noise, sigma)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, flow.add_noise(half.float(), noise, sigma).to(torch.bfloat16))
    assert flow.velocity_to_x0(half, half, sigma).dtype == torch.float32


def test_noise_levels_a_frame(x0_noise_sigma):
    x0, noise, _ = x0_noise_sigma
    sigma = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    x_t = flow.add_noise(x0, noise, sigma)
    for frame in range(4):
        torch.testing.assert_close(x_t[:, :, frame], flow.add_noise(x0[:, :, frame], noise[:, :, frame], sigma[:, frame]))


# --- shift -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shift", "warped"),
    [
        (1.0, [1.0, 0.75, 0.5, 0.25]),
        (3.0, [1.0, 0.9, 0.75, 0.5]),
        (5.0, [1.0, 0.9375, 0.83333333, 0.625]),
        (8.0, [1.0, 0.96, 0.88888889, 0.72727273]),
    ],
)
def test_shift_golden_values(shift, warped):
    assert [flow.shift_sigma(sigma, shift) for sigma in (1.0, 0.75, 0.5, 0.25)] == pytest.approx(warped, abs=1e-8)


@pytest.mark.parametrize("shift", SHIFTS)
def test_shift_keeps_the_ends_and_the_order(shift):
    sigma = torch.linspace(0, 1, 101, dtype=torch.float64)
    shifted = flow.shift_sigma(sigma, shift)
    assert (shifted[0], shifted[-1]) == (0, 1)
    assert (shifted.diff() > 0).all()


@pytest.mark.parametrize("shift", SHIFTS)
def test_unshift_is_the_inverse(shift):
    sigma = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(flow.shift_sigma(flow.shift_sigma(sigma, shift), 1 / shift), sigma)


def test_shifts_compose_by_multiplication():
    sigma = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(flow.shift_sigma(flow.shift_sigma(sigma, 2.0), 3.0), flow.shift_sigma(sigma, 6.0))
