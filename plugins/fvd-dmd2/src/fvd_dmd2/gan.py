"""The adversarial branch of DMD2 (arXiv:2405.14867, section 4.3): a discriminator on hidden states of teacher or critic.

    D(x, t)         = heads(features(add_noise(x, noise, t), t))
    student:          L_G = mean softplus(−D(x, t))
    discriminator:    L_D = mean softplus(D(x, t)) + mean softplus(−D(data, t'))

Features are conditioned as the sample is, unguided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import fvd
from fvd.adversarial import (
    Discriminator,
    approximate_r1,
    discriminator_loss,
    exact_r1,
    generator_loss_of_samples,
    twice_differentiable,
)
from fvd.features import default_layers
from fvd.flow import expand_to
from fvd_dmd2.gan_config import GanConfig
from fvd_dmd2.scores import Draw

HEADS = "heads"


@dataclass(frozen=True)
class GanLoss:
    """value: 0-dim, float32, weighted. metrics: unweighted."""

    value: Tensor
    metrics: dict[str, Tensor]


def build_discriminator(name: str, config: GanConfig, source: fvd.RoleView, *, seed: int) -> fvd.RoleHandle:
    """The role ``name``: a head for each layer of ``source`` that the run file asks for. Raises FvdError for a source without
    features."""
    widths = feature_widths(config, source)
    discriminator = Discriminator([widths[layer] for layer in chosen_layers(config, source)], seed=seed)
    handle = fvd.RoleHandle(
        name=name,
        family=source.handle.family,
        trainable=True,
        modules={HEADS: discriminator.to(source.adapter.device)},
    )
    return handle.apply_trainable()


def feature_widths(config: GanConfig, source: fvd.RoleView) -> list[int]:
    """Of each block of ``source``. Raises FvdError for a network without hidden states, such as a formula."""
    try:
        return list(source.feature_widths())
    except fvd.FvdError as error:
        if config.feature_source == "critic":
            raise
        cure = f"{error.cure} With method_config.gan.feature_source: critic they are the critic's."
        raise fvd.FvdError(error.message, cure=cure) from error


def chosen_layers(config: GanConfig, source: fvd.RoleView) -> tuple[int, ...]:
    """The run file's layers, or three. Raises FvdError for a layer that the network of ``source`` has not."""
    blocks = len(source.feature_widths())
    layers = config.layers or default_layers(blocks)
    if max(layers) >= blocks:
        raise fvd.FvdError(
            f"method_config.gan.layers: {max(layers)} is not a block of the {source.handle.name}, which has {blocks}",
            cure=f"Blocks are 0 to {blocks - 1}.",
        )
    return layers


class GanBranch:
    """The two losses of the branch, for one run.

    source: the role whose hidden states are looked at. sample_t: draws timesteps [B] where the scores are compared. A `Draw`
    given to a loss is what the matching gradient's, or the critic's, x_t was made with; it counts under ``timestep: shared``.
    """

    def __init__(
        self,
        config: GanConfig,
        adapter: fvd.Adapter,
        discriminator: fvd.RoleHandle,
        source: fvd.RoleView,
        sample_t: Callable[[fvd.StepRandom], Tensor],
    ) -> None:
        self.config = config
        self.adapter = adapter
        self.discriminator = discriminator.modules[HEADS]
        self.source = source
        self.layers = chosen_layers(config, source)
        self.sample_t = sample_t

    def generator_loss(self, x0: Tensor, batch: fvd.Batch, rng: fvd.StepRandom, shared: Draw) -> GanLoss:
        """On the student's samples ``x0``, which carry its graph. Gradient reaches the student alone: features and heads are
        differentiated at once, with respect to x0, and their graph is gone when this returns.

        Draws of a sample: t and noise, where ``timestep`` is score or uniform. Non-finite samples are dropped.
        """
        leaf = x0.detach().requires_grad_()
        x_t, draw = self._noised(leaf, rng, shared)
        logits = self.discriminator(self._features(x_t, draw, batch))
        per_sample = generator_loss_of_samples(logits)
        (gradient,) = torch.autograd.grad(per_sample.mean(), leaf)

        kept = torch.isfinite(gradient).flatten(1).all(dim=1) & torch.isfinite(per_sample) & _finite(leaf)
        loss = torch.where(kept, per_sample.detach(), 0.0).mean()
        inside = expand_to(kept, x0)
        # Zero, with the gradient of the loss.
        through_x0 = torch.where(inside, x0 - leaf.detach(), 0.0) * torch.where(inside, gradient, 0.0)
        return GanLoss(self.config.weight_generator * (loss + through_x0.sum()), {"gan/generator_loss": loss})

    def discriminator_loss(self, x0: Tensor, real: Tensor, batch: fvd.Batch, rng: fvd.StepRandom, shared: Draw) -> GanLoss:
        """On the student's samples ``x0``, detached, and as many of the data, ``real``, both [B, C, T, H, W]. Gradient reaches
        the discriminator, and the source where ``train_feature_source`` says so.

        Draws of a sample, in order: t and noise, where ``timestep`` is score or uniform; t and noise of the data where these
        are their own; the perturbation of the approximate R1.
        """
        config = self.config
        fake_x_t, draw = self._noised(x0.detach(), rng, shared)
        real_draw = self._draw(real, rng) if config.real_timestep == "own" else draw
        real_x_t = self._at(real, real_draw)
        penalized = config.r1_weight > 0
        with torch.set_grad_enabled(config.train_feature_source):
            fake_features = self._features(fake_x_t, draw, batch)
        if penalized and config.r1 == "exact":
            real_x_t = real_x_t.detach().requires_grad_()
            with twice_differentiable():
                real_features = self._features(real_x_t, real_draw, batch)
        else:
            with torch.set_grad_enabled(config.train_feature_source):
                real_features = self._features(real_x_t, real_draw, batch)
        fake_logits, real_logits = self.discriminator(fake_features), self.discriminator(real_features)

        loss = discriminator_loss(real_logits, fake_logits)
        value = config.weight_discriminator * loss
        metrics = {
            "gan/discriminator_loss": loss.detach(),
            "gan/logit_real": real_logits.detach().mean(),
            "gan/logit_fake": fake_logits.detach().mean(),
        }
        if penalized:
            if config.r1 == "exact":
                penalty = exact_r1(real_logits, real_x_t)
            else:
                penalty = approximate_r1(real_logits, self._perturbed_logits(real, real_draw, batch, rng))
            value = value + config.r1_weight * penalty
            metrics["gan/r1"] = penalty.detach()
        return GanLoss(value, metrics)

    # --- its parts ---
    def _noised(self, x0: Tensor, rng: fvd.StepRandom, shared: Draw) -> tuple[Tensor, Draw]:
        draw = shared if self.config.timestep == "shared" else self._draw(x0, rng)
        return self._at(x0, draw), draw

    def _draw(self, x0: Tensor, rng: fvd.StepRandom) -> Draw:
        if self.config.timestep == "clean":
            return Draw(torch.zeros(len(x0), device=x0.device), torch.zeros_like(x0))
        whole_schedule = self.config.timestep == "uniform"
        t = self.adapter.num_train_timesteps * rng.rand() if whole_schedule else self.sample_t(rng)
        return Draw(t, rng.randn_like(x0))

    def _at(self, x0: Tensor, draw: Draw) -> Tensor:
        # Schedules other than flow matching's have a little noise at timestep 0 too.
        return x0 if self.config.timestep == "clean" else self.adapter.add_noise(x0, draw.noise, draw.t)

    def _features(self, x_t: Tensor, draw: Draw, batch: fvd.Batch) -> list[Tensor]:
        return self.source.features(x_t, draw.t, batch.cond, layers=self.layers)

    def _perturbed_logits(self, real: Tensor, draw: Draw, batch: fvd.Batch, rng: fvd.StepRandom) -> Tensor:
        """Of data that a little noise has been added to, looked at as the data were."""
        perturbed = real + self.config.r1_alpha * rng.randn_like(real)
        with torch.set_grad_enabled(self.config.train_feature_source):
            features = self._features(self._at(perturbed, draw), draw, batch)
        logits: Tensor = self.discriminator(features)
        return logits


def _finite(x0: Tensor) -> Tensor:
    """Which samples are finite, [B] bool."""
    return torch.isfinite(x0).flatten(1).all(dim=1)
