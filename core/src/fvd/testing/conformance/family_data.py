"""B102, B103: from clips through core's own files and loader to the adapter."""

from __future__ import annotations

import torch

from fvd.adapters import Batch
from fvd.data.spec import RawBatch
from fvd.testing.conformance.asserts import require, require_tensor
from fvd.testing.conformance.examination import Subject
from fvd.testing.conformance.family_build import CAPTIONS, FamilyBench, select


def data_feed_the_adapter(subject: Subject) -> None:
    """B102: two clips, prepared as `fvd data prepare` does and read as `fvd run` does."""
    bench = subject.family
    raw = bench.raw_batch
    for field in bench.data_spec.fields:
        require(field.name in raw.tensors or not field.required, f"the data have no {field.name}, which data_spec() requires")
    batch = bench.batch
    _check_batch(bench, raw, batch, latent_shape(bench))


def latent_shape(bench: FamilyBench) -> tuple[int, ...]:
    """(C, T, H, W) as the adapter says, or else as the data have it."""
    if "latent_shape" in bench.spec.provides:
        return tuple(bench.adapter.latent_shape(bench.geometry))
    return tuple(bench.batch.latents.shape[1:])


def text_alone_feeds_the_adapter(subject: Subject) -> None:
    """B103: as a method asks for that rolls out from noise (``latents_source="zeros"``)."""
    bench = subject.family
    if bench.reads_folders:
        prompts = subject.make_folder("prompts") / "prompts.txt"
        prompts.write_text("\n".join(CAPTIONS) + "\n", encoding="utf-8")
        batches = iter(bench.loader(bench.prepare(prompts, None), needs_latents=False))
        raw = select(next(batches), [0, 1])
        batches.close()
    else:
        raw = bench.raw_batch
    batch = bench.adapter.prepare_batch(raw, latents_source="zeros")
    _check_batch(bench, raw, batch, latent_shape(bench))
    require(not bool(batch.latents.any()), 'with latents_source="zeros" the latents must be zeros')


def _check_batch(bench: FamilyBench, raw: RawBatch, batch: Batch, shape: tuple[int, ...]) -> None:
    require(isinstance(batch, Batch), "prepare_batch must return a fvd.Batch")
    require_tensor(batch.latents, (raw.batch_size, *shape), f"the latents of prepare_batch, of {bench.geometry}")
    require(batch.info == raw.info, "prepare_batch must hand on the info of the raw batch")
    require(not batch.latents.requires_grad, "the latents of prepare_batch must not require gradients")
    if "ensure_negative_conditioning" in bench.spec.provides:
        require(batch.uncond is not None, "uncond must be there once ensure_negative_conditioning() was called")
    with torch.no_grad():
        if "predict" in bench.spec.provides:
            t = torch.full((raw.batch_size,), 0.5 * bench.adapter.num_train_timesteps)
            prediction = bench.adapter.predict(bench.student, batch.latents, t, batch.cond)
            require_tensor(prediction, batch.latents.shape, "predict on what prepare_batch returns")
