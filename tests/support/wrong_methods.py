"""Methods with one thing wrong, each for the check of the conformance kit that finds it."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import field_serializer
from torch.nn import functional
from wrong_plugins import Collector

import fvd
from fvd.testing.toy.method import ToyMethod

NEEDS = frozenset({"prepare_batch", "add_noise", "training_target", "shift_and_clamp_timestep", "num_train_timesteps"})
STUDENT = fvd.RoleNeeds(trainable=True, needs={"predict"})

fails = Collector("method", roles={"student": STUDENT}, needs=NEEDS)


class Base(ToyMethod):
    """Regression on the training target, in parts that can be replaced."""

    def single_train_step(self, batch, iteration, *, rng):
        prepared = self.adapter.prepare_batch(batch, latents_source="data")
        x0 = prepared.latents
        t = self.adapter.shift_and_clamp_timestep(self.draw_t(x0, rng))
        noise = self.draw_noise(x0, rng)
        prediction = self.adapter.bind(self.roles["student"]).predict(self.adapter.add_noise(x0, noise, t), t, prepared.cond)
        loss = self.loss(prediction, self.target(x0, noise, t))
        yield fvd.Loss("loss", loss, role="student", metrics=self.metrics(prediction))

    def draw_t(self, x0, rng):
        return self.adapter.num_train_timesteps * rng.rand()

    def draw_noise(self, x0, rng):
        return rng.randn_like(x0)

    def target(self, x0, noise, t):
        return self.adapter.training_target(x0, noise, t)

    def loss(self, prediction, target):
        return functional.mse_loss(prediction, target)

    def metrics(self, prediction) -> dict[str, Any]:
        return {}


@fails("S05", "validation needs training.validation_dataset_file", example=fvd.Example(training={"log_validation": True}))
class ExampleWithoutPrompts(Base):
    pass


@fails("S05", "method_config.strength: ", config=f"{__name__}:RequiredConfig", also="C04 C05 B201")
class ExampleLacksKey(Base):
    pass


class RequiredConfig(fvd.MethodConfig):
    strength: float
    """How much."""


@fails("C01", "its role_names are ['student'], and its descriptor's roles ['model']", roles={"model": STUDENT})
class OtherRoles(Base):
    pass


@fails("C03", "has no argument 'iteration'")
class RenamedIteration(Base):
    def single_train_step(self, batch, step, *, rng):
        yield from super().single_train_step(batch, step, rng=rng)


@fails("C03", "sampling_plan must be a classmethod", also="B208 B209")
class PlanOfAnInstance(Base):
    def sampling_plan(self, run):
        return ToyMethod.sampling_plan(run)


@fails("C04", "what it writes it cannot read", config=f"{__name__}:UnreadableConfig")
class Unreadable(Base):
    pass


class UnreadableConfig(fvd.MethodConfig):
    size: int = 3
    """Pixels."""

    @field_serializer("size")
    def with_unit(self, size: int) -> str:
        return f"{size} px"


@fails("C05", "its config cannot be pickled", config=f"{__name__}:OpenConfig")
class Rooted(Base):
    pass


class OpenConfig(fvd.MethodConfig):
    def __reduce__(self):
        raise TypeError("holds a file that is open")


@fails("B201", "has built no optimizer for the trained role")
class NoOptimizer(Base):
    def optimizer_specs(self):
        return {}


@fails("B202", "was due, and its weights have not moved")
class StandsStill(Base):
    def optimizer_specs(self):
        return {"student": fvd.OptimizerSpec(learning_rate=0.0)}


@fails("B203", "it calls add_noise, which its descriptor does not declare", needs=NEEDS - {"add_noise"})
class UndeclaredCall(Base):
    pass


@fails("B203", "predict (student)", roles={"student": fvd.RoleNeeds(trainable=True)})
class UndeclaredCallOnARole(Base):
    pass


@fails("B203", "adapter.flow_shift, which is no primitive")
class LooksInside(Base):
    def draw_t(self, x0, rng):
        return super().draw_t(x0, rng) / self.adapter.flow_shift


class TwoRoles(Base):
    """A student, a critic and a frozen teacher."""

    role_names = ("student", "critic", "teacher")

    def single_train_step(self, batch, iteration, *, rng):
        prepared = self.adapter.prepare_batch(batch, latents_source="data")
        x0 = prepared.latents
        t = self.adapter.shift_and_clamp_timestep(self.draw_t(x0, rng))
        noise = self.draw_noise(x0, rng)
        x_t, target = self.adapter.add_noise(x0, noise, t), self.adapter.training_target(x0, noise, t)

        def predict(name):
            return self.adapter.bind(self.roles[name]).predict(x_t, t, prepared.cond)

        yield fvd.Loss("student_loss", self.student_loss(predict), role="student")
        yield fvd.Loss("critic_loss", functional.mse_loss(predict("critic"), target), role="critic")

    def student_loss(self, predict):
        return functional.mse_loss(predict("student"), predict("teacher").detach())


THREE = {"student": STUDENT, "critic": STUDENT, "teacher": fvd.RoleNeeds(trainable=False, needs={"predict"})}


@fails("B204", "is for student, and its gradient reaches critic too", roles=THREE)
class LeaksIntoTheCritic(TwoRoles):
    def student_loss(self, predict):
        return functional.mse_loss(predict("student"), predict("critic"))


@fails("B204", "teacher is frozen, and has changed", roles=THREE)
class MovesTheTeacher(TwoRoles):
    @torch.no_grad()
    def on_step_end(self, iteration):
        for parameter in self.roles["teacher"].modules["transformer"].parameters():
            parameter.mul_(0.999)


@fails("B205", "another seed gives the same losses")
class IgnoresItsGenerators(Base):
    def draw_t(self, x0, rng):
        return torch.full((len(x0),), 0.5 * self.adapter.num_train_timesteps)

    def draw_noise(self, x0, rng):
        return torch.sin(1000 * x0)


@fails("B206", "a step draws from the global random state of torch")
class DrawsGlobally(Base):
    def draw_t(self, x0, rng):
        return super().draw_t(x0, rng) + 0 * torch.rand(len(x0))


@fails("B207", "must be the mean of those of each")
class SumsOverTheBatch(Base):
    def loss(self, prediction, target):
        return super().loss(prediction, target) * len(prediction)


@fails("B208", "do not give what 4 at once give")
class CountsInAnAttribute(Base):
    seen = 0

    def loss(self, prediction, target):
        return super().loss(prediction, target) * (1 + 0.1 * self.seen)

    def on_step_end(self, iteration):
        self.seen += 1


@fails("B209", "names the role 'nobody'")
class SamplesNobody(Base):
    @classmethod
    def sampling_plan(cls, run):
        return fvd.SamplingPlan(role="nobody", sampler_kind="ode", sampling_steps=(2,))


@fails("B209", "no_such_sampler", also="B208")
class NoSuchSampler(Base):
    @classmethod
    def sampling_plan(cls, run):
        return fvd.SamplingPlan(role="student", sampler_kind="no_such_sampler", sampling_steps=(2,))


@fails("B210", "the metric 'mean' carries a graph")
class KeepsTheGraph(Base):
    def metrics(self, prediction):
        return {"mean": prediction.mean()}


@fails("B210", "the metric 'mean' must be one number")
class LogsVectors(Base):
    def metrics(self, prediction):
        return {"mean": prediction.detach().flatten(1).mean(dim=1)}


@fails("B211", "falls on toy (", needs=NEEDS - {"training_target"})
class TakesTheVelocityForGranted(Base):
    def target(self, x0, noise, t):
        return noise - x0


@fails("B211", "falls on toy_noise (", needs=NEEDS - {"training_target"})
class TakesNoiseForGranted(Base):
    def target(self, x0, noise, t):
        return noise
