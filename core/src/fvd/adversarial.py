"""Adversarial training on features of a diffusion network: losses as pure functions of logits, and a light discriminator.

A logit D > 0 says "real". Logits are [B, H], one a head of the discriminator; every mean below is over samples and heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from fvd.rng import derive_seed


def generator_loss_of_samples(fake_logits: Tensor) -> Tensor:
    """`generator_loss` of each sample, [B]: the mean over its heads."""
    return functional.softplus(-fake_logits.float()).mean(dim=1)


def generator_loss(fake_logits: Tensor) -> Tensor:
    """L_G = mean softplus(−D(fake)) = −mean log sigmoid(D(fake)), 0-dim, float32: the non-saturating loss (Goodfellow et al.
    2014, section 3; DMD2, arXiv:2405.14867, section 4.3). dL_G/dD = −sigmoid(−D) / numel: strong where D is sure of a fake."""
    return generator_loss_of_samples(fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """L_D = mean softplus(D(fake)) + mean softplus(−D(real)), 0-dim, float32 (Goodfellow et al. 2014, eq. 1, negated). The best
    logit is log(p_real / p_fake)."""
    return functional.softplus(fake_logits.float()).mean() + functional.softplus(-real_logits.float()).mean()


def approximate_r1(real_logits: Tensor, perturbed_logits: Tensor) -> Tensor:
    """mean (D(x) − D(x + α z))², z standard normal, 0-dim, float32 (APT, arXiv:2501.08316, section 3.3): for small α that is
    α² times the mean of `exact_r1` over the heads, from first derivatives alone."""
    return (real_logits.float() - perturbed_logits.float()).square().mean()


def exact_r1(real_logits: Tensor, real: Tensor) -> Tensor:
    """R1 = mean over samples and heads of ‖∂D/∂x‖², 0-dim, with a graph of its own (Mescheder et al. 2018, arXiv:1801.04406,
    eq. 9; the usual penalty is γ/2 of it).

    real_logits: made from ``real`` [B, ...], which requires grad; sample b of both belong together. It is differentiated
    twice, which fused attention kernels do not support: make it inside `twice_differentiable`.
    """
    penalty = real_logits.new_zeros((), dtype=torch.float32)
    for of_head in real_logits.unbind(dim=1):
        (gradient,) = torch.autograd.grad(of_head.sum(), real, create_graph=True)
        penalty = penalty + gradient.float().flatten(1).square().sum(dim=1).mean()
    return penalty / real_logits.shape[1]


def twice_differentiable() -> AbstractContextManager[object]:
    """Where attention is computed step by step, so that it may be differentiated twice; it takes the memory of the whole
    attention matrix."""
    return sdpa_kernel(SDPBackend.MATH)


class Discriminator(nn.Module):
    """One light head for each feature [B, D, T', H', W'], of any size from one token on; its forward gives logits [B, heads].

    A head normalises its feature over each sample (hidden states of large transformers have a few huge channels), brings it to
    ``hidden`` channels, looks at 3 × 3 × 3 neighbourhoods, and averages over the tokens. Samples do not influence each other.
    widths: D of each feature, in order. seed: the initial weights are a function of it and of the sizes.
    """

    def __init__(self, widths: Sequence[int], *, seed: int, hidden: int = 256) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("discriminator", seed))
            self.heads = nn.ModuleList(_head(width, min(hidden, width)) for width in widths)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        # Tokens laid out as a grid have their channels last. There the backward of torch 2.13's GroupNorm crashes on the CPU
        # where its input, from a frozen network, needs no gradient.
        grids = [feature.float().contiguous() for feature in features]
        logits = [head(grid).mean(dim=(2, 3, 4)) for head, grid in zip(self.heads, grids, strict=True)]
        return torch.cat(logits, dim=1)


def _head(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.GroupNorm(1, width),
        nn.Conv3d(width, hidden, kernel_size=1),
        nn.SiLU(),
        nn.Conv3d(hidden, hidden, kernel_size=3, padding=1),
        nn.SiLU(),
        nn.Conv3d(hidden, 1, kernel_size=1),
    )
