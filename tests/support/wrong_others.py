"""Samplers, validators, trackers, dataset kinds and commands with one thing wrong, each for the check that finds it."""

from __future__ import annotations

import itertools
import random

import torch
from wrong_plugins import Collector

import fvd
from fvd.samplers.ode import sample_ode
from fvd.samplers.sde import sample_sde
from fvd.validation.video import VideoValidator

sampler = Collector("sampler")
validator = Collector("validator")
tracker = Collector("tracker")
dataset_kind = Collector("dataset_kind")
command = Collector("command")

# --- samplers ---


@sampler("C01", "must be a function, it is the class NotAFunction")
class NotAFunction:
    pass


@sampler("C03", "takes **arguments: name them")
def takes_rest(model, latents, *, scheduler, timesteps, **rest):
    return sample_ode(model, latents, scheduler=scheduler, timesteps=timesteps, generators=rest["generators"])


@sampler("B301", "what it returns must be a float32 tensor")
def half_precision(model, latents, *, scheduler, timesteps, generators):
    return sample_ode(model, latents, scheduler=scheduler, timesteps=timesteps, generators=generators).half()


CALLS = itertools.count()


@sampler("B302", "called twice with equal generators")
def drifts(model, latents, *, scheduler, timesteps, generators):
    sampled = sample_ode(model, latents, scheduler=scheduler, timesteps=timesteps, generators=generators)
    return sampled * (1 + 1e-6 * next(CALLS))


@sampler("B303", "a sample alone must be what it is in a batch")
def centres(model, latents, *, scheduler, timesteps, generators):
    sampled = sample_ode(model, latents, scheduler=scheduler, timesteps=timesteps, generators=generators)
    return sampled - 0.1 * sampled.mean(dim=0) * (len(sampled) > 1)


@sampler("B304", "must not keep a graph")
def keeps_the_graph(model, latents, *, scheduler, timesteps, generators):
    with torch.enable_grad():
        for t in timesteps:
            latents = scheduler.step(model.predict(latents, t.expand(len(latents))), t, latents, return_dict=False)[0]
    return latents


@sampler("B304", "draws from the global random state of Python's random")
def draws_globally(model, latents, *, scheduler, timesteps, generators):
    random.random()
    return sample_ode(model, latents, scheduler=scheduler, timesteps=timesteps, generators=generators)


@sampler("B304", "must not change the latents")
def writes_into_its_input(model, latents, *, scheduler, timesteps, generators):
    sampled = sample_ode(model, latents, scheduler=scheduler, timesteps=timesteps, generators=generators)
    latents.mul_(1 + 1e-7).add_(1e-7)
    return sampled


@sampler("B305", "IndexError", takes_timesteps=True)
def only_its_own_steps(model, latents, *, scheduler, timesteps, generators):
    assert scheduler.timesteps[len(timesteps) - 1] >= 0
    return sample_ode(model, latents, scheduler=scheduler, timesteps=timesteps, generators=generators)


@sampler("B306", "times their variance")
def renoises(model, latents, *, scheduler, timesteps, generators):
    """The loop for few-step students, without saying so: it shrinks the variance."""
    return sample_sde(model, latents, scheduler=scheduler, timesteps=timesteps, generators=generators)


@sampler("B306", "miss the data: energy distance")
def stops_early(model, latents, *, scheduler, timesteps, generators):
    steps = timesteps[: len(timesteps) * 3 // 4]
    return sample_ode(model, latents, scheduler=scheduler, timesteps=steps, generators=generators)


# --- validators ---


@validator("C01", "must be a subclass of fvd.Validator")
class NoValidator:
    pass


@validator("C03", "has no argument 'request'", also="B401")
class LosesTheRequest(VideoValidator):
    def on_train_start(self):
        pass


@validator("B401", "has no file")
class Boasts(VideoValidator):
    def log_validation(self, step, request):
        artifacts = super().log_validation(step, request)
        return [*artifacts, fvd.Artifact("validation/more", self.step_dir(step) / "more.mp4", "")]


@validator("B401", "must have the same names at every step")
class NamesTheStep(VideoValidator):
    def log_validation(self, step, request):
        return [fvd.Artifact(f"{it.name}/{step}", it.path, it.caption) for it in super().log_validation(step, request)]


@validator("B402", "train or eval mode")
class LeavesEvalMode(VideoValidator):
    def log_validation(self, step, request):
        artifacts = super().log_validation(step, request)
        request.sample_handle.modules["transformer"].train()
        return artifacts


@validator("B402", "draws from the global random state of torch")
class DrawsPrompts(VideoValidator):
    def log_validation(self, step, request):
        torch.randperm(len(self.context.prompts))
        return super().log_validation(step, request)


@validator("B402", "must not touch gradients")
class ForgetsGradients(VideoValidator):
    def log_validation(self, step, request):
        request.sample_handle.modules["transformer"].zero_grad()
        return super().log_validation(step, request)


# --- trackers ---


class Diary(fvd.Tracker):
    def __init__(self, context):
        self.path = context.log_dir / "diary.txt"

    def write(self, text):
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def log(self, metrics, step):
        self.write(f"{step} {metrics}")


@tracker("C01", "must be or build a fvd.Tracker")
class NoTracker:
    pass


@tracker("C03", "has no argument 'context'")
def renamed_context(setup):
    return Diary(setup)


@tracker("B501", "must build a fvd.Tracker, it built a PosixPath")
def builds_a_path(context):
    return context.log_dir


@tracker("B501", "ValueError: cannot convert float NaN to integer (wrong_others, line ")
class Rounds(Diary):
    def log(self, metrics, step):
        self.write(f"{[round(value) for value in metrics.values()]}")


@tracker("B501", "never begun")
class MustHaveLogged(Diary):
    begun = False

    def log(self, metrics, step):
        self.begun = True

    def finish(self):
        if not self.begun:
            raise RuntimeError("never begun")


@tracker("B502", "has written run/diary.txt")
class WritesBeside(Diary):
    def __init__(self, context):
        super().__init__(context)
        self.path = context.run_dir / "diary.txt"


@tracker("B502", "has written elsewhere/")
class WritesWhereItIs(Diary):
    def finish(self):
        with open("diary.txt", "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write("done")


@tracker("B502", "has changed or removed clip.mp4", also="B503")
class MovesVideos(Diary):
    def log_video(self, name, path, step, caption):
        path.rename(self.path.with_name(path.name))


@tracker("B503", "FileExistsError")
class OnlyNewFolders(Diary):
    def __init__(self, context):
        super().__init__(context)
        self.path.touch(exist_ok=False)


# --- dataset kinds and commands ---


@dataset_kind("C01", "must be a function")
class KindClass:
    pass


@dataset_kind("C03", "has no argument 'needs_latents'")
def needs_everything(sources, spec):
    return None


@dataset_kind("C03", "must take its arguments in the order sources, spec")
def other_order(spec, sources, *, needs_latents):
    return None


@command("C01", "must be a function")
class CommandClass:
    pass


@command("C03", "requires 'subparsers', which nobody gives")
def wants_more(parser, subparsers):
    return None
