"""B301 to B306: a denoising loop on the toys, one of which predicts the velocity and one noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fvd.rng import randn_per_sample
from fvd.samplers.sampling import load_sampler
from fvd.specs import SamplerSpec
from fvd.testing.conformance.asserts import (
    global_random_state_untouched,
    require,
    require_close,
    require_different,
    require_equal,
    require_tensor,
)
from fvd.testing.conformance.examination import Subject
from fvd.testing.conformance.outcomes import CheckSkipped
from fvd.testing.conformance.toy_models import ToyModel, toys_with_scheduler
from fvd.testing.toy.mixture import energy_distance

STEPS = 6
MANY_STEPS = 50
POINTS = 1000
ENERGY_BOUND = 0.01
"""Of the energy distance between so many points and the mixture. 50 steps of a first-order solver are within 0.003, which is
the noise of the estimate; without the last tenth of the steps they are at 0.016 and more."""
SPREAD_BOUND = 0.7
"""Of the variance inside a mode, relative to the true one (or the other way round). First-order solvers lose 16 % of it in
50 steps; the loop for few-step students loses 60 %, which the energy distance, a matter of the whole mixture, does not see."""


def _spec(subject: Subject) -> SamplerSpec:
    assert isinstance(subject.spec, SamplerSpec)
    return subject.spec


def _toys(subject: Subject, path: str = "random") -> list[ToyModel]:
    toys = toys_with_scheduler(subject.plugins, _spec(subject).scheduler, path)
    if not toys:
        raise CheckSkipped(f"no toy family has a scheduler of kind {_spec(subject).scheduler!r}")
    return toys


def _noise(toy: ToyModel, seeds: Sequence[int]) -> Tensor:
    return randn_per_sample(toy.shape, _generators(seeds), device=torch.device("cpu"))


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _run(
    subject: Subject,
    toy: ToyModel,
    latents: Tensor,
    seeds: Sequence[int],
    *,
    steps: int = STEPS,
    timesteps: Sequence[float] | None = None,
) -> Tensor:
    """The loop as core calls it, with its own scheduler or on given timesteps."""
    scheduler = toy.adapter.scheduler(_spec(subject).scheduler)
    if timesteps is None:
        scheduler.set_timesteps(steps)
        scheduler.set_begin_index(0)
        chosen = scheduler.timesteps
    else:
        chosen = torch.tensor(timesteps, dtype=torch.float32)
    function = load_sampler(subject.plugins, subject.name).function
    model = toy.unguided(len(latents))
    return function(model, latents, scheduler=scheduler, timesteps=chosen, generators=_generators(seeds))


def _samples_of(subject: Subject, toy: ToyModel, latents: Tensor, seeds: Sequence[int]) -> Tensor:
    """`_run` on a copy of ``latents``: what a loop does to its input is another check."""
    return _run(subject, toy, latents.clone(), seeds)


def samples(subject: Subject) -> None:
    """B301."""
    for toy in _toys(subject):
        for seeds in ([1], [1, 2, 3]):
            sampled = _run(subject, toy, _noise(toy, seeds), seeds)
            require_tensor(sampled, (len(seeds), *toy.shape), f"on {toy.name}, what it returns")
        one, other = _run(subject, toy, _noise(toy, [1, 2]), [1, 2])
        require_different(one, other, f"on {toy.name}, two noises give the same latents")


def same_generators(subject: Subject) -> None:
    """B302."""
    for toy in _toys(subject):
        latents = _noise(toy, [4, 5])
        first = _samples_of(subject, toy, latents, [4, 5])
        require_equal(_samples_of(subject, toy, latents, [4, 5]), first, f"on {toy.name}, called twice with equal generators")


def neighbours(subject: Subject) -> None:
    """B303."""
    for toy in _toys(subject):
        latents = _noise(toy, [4, 5])
        together = _samples_of(subject, toy, latents, [4, 5])
        for position, seed in enumerate([4, 5]):
            alone = _samples_of(subject, toy, latents[position : position + 1], [seed])
            message = f"on {toy.name}, a sample alone must be what it is in a batch (draw from generators[b] for sample b)"
            require_close(together[position : position + 1], alone, message)


def leaves_no_trace(subject: Subject) -> None:
    """B304."""
    for toy in _toys(subject):
        latents = _noise(toy, [4, 5])
        kept = latents.clone()
        with global_random_state_untouched("the loop"):
            sampled = _run(subject, toy, latents, [4, 5])
        require(torch.equal(latents, kept), "it must not change the latents that it is given")
        require(not sampled.requires_grad, "it must not keep a graph: call it under @torch.no_grad()")
        require(torch.is_grad_enabled(), "it must leave the grad mode as it was")


def any_ladder(subject: Subject) -> None:
    """B305: also of one step, and between two entries of a table."""
    if not _spec(subject).takes_timesteps:
        raise CheckSkipped("its descriptor does not say takes_timesteps")
    for toy in _toys(subject):
        steps = toy.adapter.num_train_timesteps
        for ladder in ([steps], [steps, 0.733 * steps, 0.5 * steps, 0.05 * steps], [0.9 * steps, 0.1 * steps]):
            sampled = _run(subject, toy, _noise(toy, [1, 2]), [1, 2], timesteps=ladder)
            require_tensor(sampled, (2, *toy.shape), f"on {toy.name} with timesteps {ladder}, what it returns")


def quality(subject: Subject) -> None:
    """B306: with the exact denoiser of a known mixture, what it makes has to be that mixture."""
    if _spec(subject).few_step:
        raise CheckSkipped("it is made for few-step students, whose x0 is a sample")
    seeds = list(range(POINTS))
    for toy in _toys(subject, "analytic"):
        sampled = _run(subject, toy, _noise(toy, seeds), seeds, steps=MANY_STEPS).flatten(1).double()
        distance = energy_distance(sampled, toy.truth_samples(2 * POINTS))
        message = f"on {toy.name}, {MANY_STEPS} steps with the exact denoiser miss the data: energy distance {distance:.3f}"
        require(distance < ENERGY_BOUND, f"{message}, allowed is {ENERGY_BOUND}")
        offsets = torch.cdist(sampled, toy.truth.means).min(dim=1).values
        spread = float(offsets.square().mean()) / (sampled.shape[1] * toy.truth.std**2)
        message = f"on {toy.name}, {MANY_STEPS} steps with the exact denoiser make modes of {spread:.2f} times their variance"
        require(SPREAD_BOUND < spread < 1 / SPREAD_BOUND, f"{message}: they shrink, or blur, what they sample")
