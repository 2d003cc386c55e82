"""Adversarial losses against formulas, finite differences and analytic optima; the discriminator on every size."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from fvd.adversarial import Discriminator, approximate_r1, discriminator_loss, exact_r1, generator_loss, twice_differentiable


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- losses ---
def test_losses_are_their_formulas_in_float64():
    real, fake = draw(5, 3, seed=1) * 4, draw(5, 3, seed=2) * 4
    r, f = real.double(), fake.double()
    expected = -torch.log(torch.sigmoid(r)).mean() - torch.log(1 - torch.sigmoid(f)).mean()
    torch.testing.assert_close(discriminator_loss(real, fake).double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(generator_loss(fake).double(), -torch.log(torch.sigmoid(f)).mean(), rtol=1e-6, atol=0)


def test_gradient_of_the_generator_is_minus_sigmoid_of_minus_d():
    fake = (draw(6, 2) * 5).requires_grad_()
    generator_loss(fake).backward()
    torch.testing.assert_close(fake.grad, -torch.sigmoid(-fake.detach()) / fake.numel())


def test_losses_are_finite_and_linear_far_out():
    far = torch.tensor([[-500.0], [500.0]])
    assert generator_loss(far[:1]).item() == 500
    assert discriminator_loss(far[1:], far[:1]).item() == 0
    assert discriminator_loss(far[:1], far[1:]).item() == 1000


def test_losses_are_float32_of_low_precision_logits():
    logits = draw(4, 2).bfloat16()
    for value in (generator_loss(logits), discriminator_loss(logits, logits), approximate_r1(logits, logits)):
        assert (value.dtype, value.ndim) == (torch.float32, 0)


def test_the_best_logit_is_the_log_of_the_ratio_of_densities():
    """Real N(1, 1), fake N(−0.5, 1): log p_real / p_fake = 1.5 x − 0.375, which a linear D can say."""
    real, fake = draw(200_000, 1, seed=1, dtype=torch.float64) + 1, draw(200_000, 1, seed=2, dtype=torch.float64) - 0.5
    weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], line_search_fn="strong_wolfe", max_iter=50)

    def closure():
        optimizer.zero_grad()
        # In the optimum's neighbourhood float32 losses are exact to 1e-7, far below the sampling error.
        loss = discriminator_loss(weights[0] * real + weights[1], weights[0] * fake + weights[1])
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(weights.detach(), torch.tensor([1.5, -0.375], dtype=torch.float64), atol=0.02, rtol=0)


# --- R1 ---
class Quadratic(nn.Module):
    """D_h(x) = a_h · x + x' Q x / 2."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(draw(2, 4, dtype=torch.float64))
        root = draw(4, 4, seed=3, dtype=torch.float64)
        self.q = nn.Parameter(root + root.T)

    def forward(self, x):
        return x @ self.a.T + (x @ self.q * x).sum(1, keepdim=True) / 2


def test_exact_r1_is_the_squared_norm_of_the_gradient():
    discriminator, x = Quadratic(), draw(5, 4, seed=4, dtype=torch.float64).requires_grad_()
    expected = (discriminator.a[:, None] + x @ discriminator.q).square().sum(dim=-1).mean()
    torch.testing.assert_close(exact_r1(discriminator(x), x).double(), expected.detach(), rtol=1e-6, atol=0)


def test_exact_r1_reaches_the_parameters_by_double_backward():
    discriminator, x = Quadratic(), draw(5, 4, seed=4, dtype=torch.float64).requires_grad_()
    exact_r1(discriminator(x), x).backward()
    gradient = discriminator.a[:, None] + x @ discriminator.q
    torch.testing.assert_close(discriminator.a.grad, gradient.detach().mean(dim=1), rtol=1e-6, atol=1e-7)


def test_approximate_r1_is_alpha_squared_times_the_exact_one():
    discriminator, alpha = Quadratic(), 1e-3
    x = draw(1, 4, seed=5, dtype=torch.float64).requires_grad_()
    exact = exact_r1(discriminator(x), x).item()
    noise = draw(100_000, 4, seed=6, dtype=torch.float64)
    with torch.no_grad():
        # The difference in float64: float32 logits agree to more digits than α leaves.
        approximate = (discriminator(x) - discriminator(x + alpha * noise)).square().mean().item()
    assert approximate / alpha**2 == pytest.approx(exact, rel=0.02)
    assert approximate_r1(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.5, 2.0]])).item() == 0.125


def test_exact_r1_is_twice_differentiable_through_attention():
    x = draw(2, 4, 5, 8).requires_grad_()
    head = torch.nn.Linear(8, 1)
    with twice_differentiable():
        tokens = functional.scaled_dot_product_attention(x, 0.5 * x, x)
    exact_r1(head(tokens.mean(dim=(1, 2))), x).backward()
    assert head.weight.grad.any()


# --- the discriminator ---
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 3), (5, 4, 7), (2, 16, 16)])
def test_logits_are_one_a_head_whatever_the_size(size):
    discriminator = Discriminator([6, 10], seed=0)
    assert discriminator([draw(3, 6, *size), draw(3, 10, *size)]).shape == (3, 2)


def test_a_head_sees_its_own_feature_alone_and_each_sample_alone():
    discriminator = Discriminator([6, 6], seed=0)
    one, other = draw(3, 6, 2, 3, 3, seed=1), draw(3, 6, 2, 3, 3, seed=2)
    logits = discriminator([one, other])
    changed = one.clone()
    changed[1] += 1.0 + draw(6, 2, 3, 3, seed=3)
    again = discriminator([changed, other])
    assert torch.equal(again[:, 1], logits[:, 1])
    torch.testing.assert_close(again[[0, 2], 0], logits[[0, 2], 0])
    assert (again[1, 0] - logits[1, 0]).abs() > 1e-4


def test_weights_follow_from_the_seed_and_leave_the_global_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, third = Discriminator([8], seed=1), Discriminator([8], seed=1), Discriminator([8], seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    same = [torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.heads[0][1].weight, third.heads[0][1].weight)


def test_gradients_of_the_discriminator_by_finite_differences():
    discriminator = Discriminator([3], seed=0, hidden=4).double()
    discriminator.forward = lambda feature: discriminator.heads[0](feature).mean(dim=(2, 3, 4))  # forward makes float32
    feature = draw(2, 3, 1, 2, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(discriminator.forward, (feature,))
    assert torch.autograd.gradgradcheck(discriminator.forward, (feature,))
