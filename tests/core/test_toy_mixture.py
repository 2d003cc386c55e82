"""The toy's mixture against numerical integration, automatic differentiation and closed forms, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from fvd.testing.toy.mixture import GaussianMixture, circle, energy_distance

LEVELS = [(1.0, 0.02), (0.9, 0.3), (0.5, 0.5), (0.2, 0.98), (0.01, 1.0)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_posterior_mean_is_the_integral(alpha, sigma):
    """E[x0 | x_t] by the trapezoid rule on a fine grid in one dimension."""
    mixture = GaussianMixture(torch.tensor([[-1.5], [0.3], [1.1]]), 0.2, torch.tensor([0.2, 0.5, 0.3]))
    grid = torch.linspace(-4, 4, 200_001, dtype=torch.float64)
    prior = mixture.log_density(grid[:, None]).exp()
    for x_t in (-1.7, 0.0, 0.4, 0.9):
        likelihood = torch.exp(-((x_t - alpha * grid) ** 2) / (2 * sigma**2))
        evidence = torch.trapezoid(prior * likelihood, grid)
        expected = torch.trapezoid(grid * prior * likelihood, grid) / evidence
        posterior = mixture.posterior(torch.tensor([[x_t]]).double(), torch.tensor([alpha]), torch.tensor([sigma]))
        torch.testing.assert_close(posterior.x0[0, 0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_tweedie(alpha, sigma):
    """The score of the noised mixture, by automatic differentiation, is -E[noise | x_t] / sigma; and alpha E[x0] + sigma
    E[noise] is x_t."""
    mixture = GaussianMixture(torch.randn(5, 3, generator=generator()), 0.3, torch.rand(5, generator=generator(1)) + 0.1)
    x_t = torch.randn(40, 3, generator=generator(2), dtype=torch.float64, requires_grad=True)
    (score,) = torch.autograd.grad(mixture.noised(alpha, sigma).log_density(x_t).sum(), x_t)
    alphas, sigmas = torch.full((40,), alpha, dtype=torch.float64), torch.full((40,), sigma, dtype=torch.float64)
    posterior = mixture.posterior(x_t.detach(), alphas, sigmas)
    torch.testing.assert_close(-posterior.noise / sigma, score, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(alpha * posterior.x0 + sigma * posterior.noise, x_t.detach(), rtol=1e-12, atol=1e-12)


def test_the_density_integrates_to_one_and_is_that_of_the_noised_samples():
    mixture = circle(3, 1.0, 0.2).noised(0.7, 0.4)
    axis = torch.linspace(-5, 5, 801, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    density = mixture.log_density(points).exp().reshape(801, 801)
    assert float(torch.trapezoid(torch.trapezoid(density, axis), axis)) == pytest.approx(1, abs=1e-9)
    x0 = circle(3, 1.0, 0.2).sample(20_000, generator())
    noised = 0.7 * x0 + 0.4 * torch.randn(20_000, 2, generator=generator(1), dtype=torch.float64)
    entropy = -float((density * density.clamp(min=1e-300).log()).sum()) * float(axis[1] - axis[0]) ** 2
    assert -float(mixture.log_density(noised).mean()) == pytest.approx(entropy, abs=0.02)


def test_both_ends_are_exact():
    mixture = circle(8, 2.0, 0.15)
    x_t = 3 * torch.randn(50, 2, generator=generator(), dtype=torch.float64)
    clean = mixture.posterior(x_t, torch.ones(50), torch.zeros(50))
    torch.testing.assert_close(clean.x0, x_t)
    assert torch.equal(clean.noise, torch.zeros_like(x_t))
    weights = torch.zeros(50, 8)
    weights[:, 3] = 1
    pure = mixture.posterior(x_t, torch.zeros(50), torch.ones(50), weights)
    torch.testing.assert_close(pure.x0, mixture.means[3].expand(50, 2))
    torch.testing.assert_close(pure.noise, x_t)
    far = mixture.posterior(1e4 * x_t, torch.ones(50), torch.full((50,), 1e-6))
    assert torch.isfinite(far.x0).all()


def test_weights_of_a_sample_are_a_mixture_of_its_own():
    mixture = circle(4, 1.0, 0.5)
    weights = torch.tensor([[0.0, 1.0, 3.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    x_t, half = torch.randn(2, 2, generator=generator(), dtype=torch.float64), torch.full((2,), 0.5)
    both = mixture.posterior(x_t, half, half, weights)
    for row in range(2):
        alone = GaussianMixture(mixture.means, 0.5, weights[row]).posterior(x_t[row : row + 1], half[:1], half[:1])
        torch.testing.assert_close(both.x0[row], alone.x0[0])


def test_samples_have_the_mixtures_moments():
    mixture = GaussianMixture(torch.tensor([[0.0, 0.0], [4.0, 0.0]]), 0.5, torch.tensor([3.0, 1.0]))
    points = mixture.sample(40_000, generator())
    torch.testing.assert_close(points.mean(dim=0), torch.tensor([1.0, 0.0]).double(), atol=0.03, rtol=0)
    torch.testing.assert_close(points.var(dim=0), torch.tensor([3.25, 0.25]).double(), atol=0.05, rtol=0)
    second = mixture.sample(500, generator(), weights=torch.tensor([0.0, 1.0]))
    assert (second - mixture.means[1]).norm(dim=1).max() < 0.5 * 5
    assert mixture.root_mean_square == pytest.approx(math.sqrt(4 * 0.5 + 0.25))


def test_energy_distance_has_its_closed_form_and_no_bias():
    """Between N(0, 1) and N(d, 1): 2 E|N(d, 2)| - 2 E|N(0, 2)|, with E|N(m, s^2)| known."""
    shift = 1.5
    folded = 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
    expected = 2 * folded - 4 / math.sqrt(math.pi)
    a, b = torch.randn(4000, 1, generator=generator()), shift + torch.randn(4000, 1, generator=generator(1))
    assert energy_distance(a, b) == pytest.approx(expected, abs=0.05)
    draws = [torch.randn(2, 20, 2, generator=generator(seed)) for seed in range(400)]
    assert sum(energy_distance(one, other) for one, other in draws) / 400 == pytest.approx(0, abs=0.02)


def test_energy_distance_is_a_mean_over_pairs():
    a, b = torch.randn(5, 2, generator=generator()).double(), torch.randn(4, 2, generator=generator(1)).double()
    between = sum(float((x - y).norm()) for x in a for y in b) / 20
    within_a = sum(float((a[i] - a[j]).norm()) for i in range(5) for j in range(5) if i != j) / 20
    within_b = sum(float((b[i] - b[j]).norm()) for i in range(4) for j in range(4) if i != j) / 12
    assert energy_distance(a, b) == pytest.approx(2 * between - within_a - within_b)


def test_a_mixture_needs_spread():
    with pytest.raises(ValueError, match="std above 0"):
        GaussianMixture(torch.zeros(2, 2), 0.0)
