"""``method_config.gan:`` of the method dmd2. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

from fvd.config.models import StrictModel


class GanConfig(StrictModel):
    """The adversarial loss on real latents (arXiv:2405.14867, section 4.3)."""

    weight_generator: NonNegativeFloat = 0.03
    """Of the student's loss, mean softplus(-D(student)). 0.03 for frozen features of the teacher (FastGen, Wan); 5e-3 for
    features that are trained along (official DMD2, SDXL). 0 trains the discriminator alone."""
    weight_discriminator: PositiveFloat = 1.0
    """Of the discriminator's loss, mean softplus(D(student)) + mean softplus(-D(data)). It matters where the features are
    trained along, beside the critic's own loss: 1e-2 there (official DMD2)."""

    feature_source: Literal["teacher", "critic"] = "teacher"
    """Whose hidden states the discriminator looks at."""
    train_feature_source: bool = False
    """critic: whether the discriminator's loss trains the critic's network too (official DMD2), or the heads alone."""
    layers: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    """Blocks after which it looks, counted from 0. Default: three, spaced over the second half: [15, 22, 29] of 30."""

    timestep: Literal["shared", "score", "uniform", "clean"] = "shared"
    """How noisy what it looks at is. shared: the very x_t of the matching gradient, and of the critic's loss (FastGen); score:
    drawn as that of the matching gradient; uniform: over the whole schedule (official DMD2); clean: not noised at all."""
    real_timestep: Literal["same", "own"] = "same"
    """The data with the timestep and the noise of the student's sample, or with a draw of their own."""

    r1: Literal["approximate", "exact"] = "approximate"
    """approximate: mean (D(x) - D(x + alpha z))^2 at noised data (arXiv:2501.08316); exact: the squared gradient of D at noised
    data (arXiv:1801.04406), differentiated twice, which fused attention cannot: it takes the memory of whole attention
    matrices, and does not go together with recomputed activations of a critic that is trained along."""
    r1_weight: NonNegativeFloat = 0.0
    """Of the penalty on the discriminator's slope at the data. 0 = none."""
    r1_alpha: PositiveFloat = 0.1
    """approximate: the size of the perturbation of the data."""

    @model_validator(mode="after")
    def _features_can_be_trained(self) -> Self:
        if self.train_feature_source and self.feature_source == "teacher":
            raise ValueError("train_feature_source needs feature_source: critic; the teacher is frozen")
        return self

    @model_validator(mode="after")
    def _exact_r1_reaches_no_other_role(self) -> Self:
        untrained_critic = self.feature_source == "critic" and not self.train_feature_source
        if self.r1_weight > 0 and self.r1 == "exact" and untrained_critic:
            raise ValueError(
                "r1: exact differentiates through the features, and the critic's would be trained along: set "
                "train_feature_source: true, or r1: approximate, or feature_source: teacher"
            )
        return self
