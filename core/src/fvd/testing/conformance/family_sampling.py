"""B112, B113, B118, B119: from noise to videos."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from fvd.errors import FvdError
from fvd.samplers.guidance import GuidedModel
from fvd.samplers.sampling import CountsSteps, LoadedSampler, load_sampler, sample_latents
from fvd.specs import SamplerSpec
from fvd.testing.conformance.asserts import refused, require, require_close, require_different, require_tensor
from fvd.testing.conformance.examination import Subject
from fvd.testing.conformance.family_build import CAPTIONS, FamilyBench, synthetic_video
from fvd.testing.conformance.family_data import latent_shape
from fvd.testing.conformance.outcomes import CheckSkipped

STEPS = 3
PERFECT_STEPS = 10
PERFECT_TOLERANCE = 0.05
"""Root mean square, of latents of unit size: some solvers end at the first entry of their table, which keeps 3 % of the noise,
some round timesteps (0.2 %). One that means something else is off by 1 and more."""


def samplers(subject: Subject) -> None:
    """B112: with core's sampler of each kind, with and without guidance."""
    bench = subject.family
    bench.require_primitives("scheduler", "encode_prompts", "negative_conditioning")
    if not bench.spec.samplers:
        raise CheckSkipped("the family declares no sampler kind")
    for kind in sorted(bench.spec.samplers):
        require(bench.adapter.scheduler(kind) is not bench.adapter.scheduler(kind), f"scheduler({kind!r}) must be a fresh one")
        for sampler in _samplers_of(subject, kind):
            for scale in (1.0, 2.0):
                _sample(bench, sampler, scale)
    error = refused(lambda: bench.adapter.scheduler("no_such_kind"))
    require(isinstance(error, FvdError), f"scheduler of a kind that there is not must raise fvd.FvdError, got {error!r}")


def _samplers_of(subject: Subject, kind: str) -> list[LoadedSampler]:
    """Those that ask for a scheduler of this kind, core's own."""
    names = [
        f"{record.distribution}:{spec.name}"
        for spec in cast("list[SamplerSpec]", subject.plugins.specs("sampler"))
        if spec.scheduler == kind and (record := subject.plugins.owner(spec)).module == "fvd.plugin"
    ]
    return [load_sampler(subject.plugins, name) for name in names]


def _sample(bench: FamilyBench, sampler: LoadedSampler, scale: float) -> None:
    what = f"sampler {sampler.spec.name} at guidance {scale:g}"
    uncond = bench.adapter.negative_conditioning(2) if scale != 1.0 else None
    cond = bench.adapter.encode_prompts(list(CAPTIONS))
    shape = latent_shape(bench)
    model = GuidedModel(bench.adapter, bench.student, cond, uncond, scale)
    sampled = sample_latents(model, sampler=sampler, shape=shape, steps=STEPS, timesteps=None, seeds=[1, 2])
    require_tensor(sampled, (2, *shape), what)
    require_different(sampled[0], sampled[1], f"{what}: two seeds give the same latents")
    scheduler = bench.adapter.scheduler(sampler.spec.scheduler)
    scheduler.set_timesteps(STEPS)
    timesteps = scheduler.timesteps
    limit = bench.adapter.num_train_timesteps
    falling = bool((timesteps.float().diff() <= 0).all()) and float(timesteps[0]) <= limit and float(timesteps[-1]) >= 0
    require(
        falling,
        f"the timesteps of scheduler({sampler.spec.scheduler!r}) must fall inside [0, {limit}], got {timesteps.tolist()}",
    )


def scheduler_takes_predictions(subject: Subject) -> None:
    """B119: with what a perfect network says of one x0 and one noise, the solver arrives at that x0. First-order solvers do
    so exactly, and better ones too, since x0 and noise stay what they are along the way."""
    bench = subject.family
    bench.require_primitives("scheduler", "add_noise", "training_target")
    if "ode" not in bench.spec.samplers:
        raise CheckSkipped("the family declares no sampler kind 'ode'")
    scheduler = bench.adapter.scheduler("ode")
    scheduler.set_timesteps(PERFECT_STEPS)
    if isinstance(scheduler, CountsSteps):
        scheduler.set_begin_index(0)
    x0, noise = bench.x0, bench.noise()
    batch = torch.ones(len(x0))
    x_t = bench.adapter.add_noise(x0, noise, scheduler.timesteps[0] * batch)
    for t in scheduler.timesteps:
        target = bench.adapter.training_target(x0, noise, t * batch)
        x_t = require_tensor(scheduler.step(target, t, x_t, return_dict=False)[0], x0.shape, "scheduler('ode').step")
    off = float((x_t - x0).square().mean().sqrt())
    limit = PERFECT_TOLERANCE * max(1.0, float(x0.square().mean().sqrt()))
    require(
        off < limit,
        f"scheduler('ode') takes predictions for something else than training_target says: with perfect predictions its steps "
        f"must end at x0, they are off by {off:.2g}",
    )


def decoding(subject: Subject) -> None:
    """B113."""
    bench = subject.family
    bench.require_primitives("latent_shape", "decode")
    shape = latent_shape(bench)
    require(len(shape) == 4 and all(size > 0 for size in shape), f"latent_shape must be (C, T, H, W), got {shape}")
    from_data = tuple(bench.x0.shape[1:])
    require(shape == from_data, f"latent_shape of {bench.geometry} says {shape}, and the data have {from_data}")
    video = bench.adapter.decode(bench.x0)
    _check_video(bench, video)
    require_different(video, bench.adapter.decode(bench.noise("other")), "decode gives the same video for other latents")
    if bench.encoders:
        clip = synthetic_video(bench.geometry, 0)[None]
        encoded = bench.encoders.encode_video(clip)
        require(
            tuple(encoded.shape[1:]) == shape, f"encode_video gives {list(encoded.shape[1:])}, and latent_shape says {shape}"
        )


def _check_video(bench: FamilyBench, video: Tensor) -> None:
    require(isinstance(video, Tensor) and video.ndim == 5, "decode must return a tensor [B, 3, T, H, W]")
    geometry = bench.geometry
    size = (geometry.num_frames, geometry.height, geometry.width) if bench.encoders else tuple(video.shape[2:])
    require_tensor(video, (len(bench.x0), 3, *size), f"decode, for {geometry},")
    low, high = float(video.min()), float(video.max())
    require(low >= 0 and high <= 1, f"decode must give values in [0, 1], got {low:.3g} to {high:.3g}")
    require(not video.requires_grad, "decode must not keep a graph")


def release(subject: Subject) -> None:
    """B118: what `Adapter.release` frees comes back when it is needed."""
    bench = subject.family
    bench.require_primitives("encode_prompts", "predict")
    t, prompts = bench.t(0.5), list(CAPTIONS)
    before = bench.predict(bench.student, t, bench.adapter.encode_prompts(prompts))
    video = bench.adapter.decode(bench.x0) if "decode" in bench.spec.provides else torch.zeros(1)
    bench.adapter.release()
    bench.adapter.release()
    after = bench.predict(bench.student, t, bench.adapter.encode_prompts(prompts))
    require_close(after, before, "predict after release() must be what it was")
    if "decode" in bench.spec.provides:
        require_close(bench.adapter.decode(bench.x0), video, "decode after release() must be what it was")
    again = bench.adapter.prepare_batch(bench.raw_batch, latents_source="data")
    require_close(again.latents, bench.x0, "prepare_batch after release() must give what it gave")
