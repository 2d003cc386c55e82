"""B211: what a method learns on one toy family, it learns on the other, whose networks predict something else."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from fvd.methods import Method
from fvd.testing.conformance.asserts import require
from fvd.testing.conformance.examination import Subject
from fvd.testing.conformance.method_build import BuiltMethod, MethodBench, train_step
from fvd.testing.conformance.method_runs import sample_as_planned
from fvd.testing.toy.config import ToyConfig
from fvd.testing.toy.mixture import circle, energy_distance

STEPS = 200
POINTS = 1000
START = "random:1"
"""Weights whose samples are far from the mixture, at an energy distance of 0.58."""
LEARNT = 0.5
"""Of the energy distance before training: below it, a method has learnt. Over several seeds, regression on the training target
ends at 0.09 to 0.22 of it on both families, consistency distillation at 0.2 to 0.45. A method that regresses on the velocity,
or on noise, whatever the network predicts, ends at 0.15 to 0.25 on the family that does predict it, and on the other at 1.15
and more (noise) or 6 and more (velocity)."""
_OF_A_RUN = ("output_dir", "data_path", "max_train_steps", "gradient_accumulation_steps", "log_validation")
"""Keys of an example's ``training:`` that matter for real runs only."""


class LearningBench(MethodBench):
    """A method as its example run file of the toy would train it, in a few steps: trained roles start at random, frozen ones
    are the exact denoiser."""

    def __init__(self, subject: Subject, family: str) -> None:
        super().__init__(subject, family)
        example = self.family_spec.example
        training = {**self.spec.example.training, **example.training}
        models = {
            role: (START if needs.trainable else example.frozen_path, needs.trainable)
            for role, needs in self.spec.roles.items()
            if not needs.optional
        }
        trial = replace(self.trial, models=models, training={key: training[key] for key in training.keys() - {*_OF_A_RUN}})
        self.run_config = trial.config(Path("unused"), STEPS)

    def learn(self) -> Progress:
        """Energy distances between the mixture and what the method's sampling plan makes, before and after training."""
        built = self.build()
        with closing(self.raw_batches()) as batches:
            for iteration, raw in enumerate(islice(batches, STEPS), start=1):
                train_step(built, raw, iteration)
        return Progress(self.family_spec.name, self._distance(self.build()), self._distance(built))

    def _distance(self, built: BuiltMethod) -> float:
        config = self.run_config.pipeline_config
        assert isinstance(config, ToyConfig)
        method_class: type[Method] = self.subject.plugins.load("method", self.subject.name)
        plan = method_class.sampling_plan(self.run_config)
        points = sample_as_planned(self, built, plan, "", POINTS).flatten(1)
        truth = circle(config.modes, config.radius, config.std)
        return energy_distance(points, truth.sample(2 * POINTS, torch.Generator().manual_seed(7)))


@dataclass(frozen=True)
class Progress:
    """Energy distances to the data on one family."""

    family: str
    before: float
    after: float

    @property
    def learnt(self) -> bool:
        return self.after < LEARNT * self.before

    @property
    def lost(self) -> bool:
        return not self.after <= self.before  # NaN is lost too

    def __str__(self) -> str:
        return f"{self.family} ({self.before:.2f} to {self.after:.2g})"


def learns_alike(subject: Subject) -> str | None:
    """B211: not a matter of how much, but of direction."""
    progress = [LearningBench(subject, bench.family_name).learn() for bench in subject.methods]
    learnt, lost = [one for one in progress if one.learnt], [one for one in progress if one.lost]
    said = f"in {STEPS} steps the energy distance of its samples to the data"
    if not learnt:
        return f"nothing to compare: {said} falls to less than half on no toy"
    require(
        not lost,
        f"{said} falls on {_listed(learnt)}, and rises on {_listed(lost)}: does it take for granted what the network predicts? "
        "`adapter.training_target`, `predict_x0` and `predict_noise` are right on every family",
    )
    return None


def _listed(progress: list[Progress]) -> str:
    return " and ".join(str(one) for one in progress)
