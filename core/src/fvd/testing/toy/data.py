"""The toy's data: points of the mixture with captions, made when they are read. Nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import fvd
from fvd.data.dataset import Sample
from fvd.rng import seeded_generator
from fvd.testing.toy.mixture import GaussianMixture
from fvd.testing.toy.text import caption_of, embed

CHUNKS, CHUNK_SIZE = 64, 128
LATENT, TEXT = "vae_latent", "text_embedding"


@dataclass(frozen=True, kw_only=True)
class PointsSpec(fvd.DataSpec):
    """A `fvd.DataSpec` that says which mixture the points come from."""

    mixture: GaussianMixture


def points_spec(mixture: GaussianMixture) -> PointsSpec:
    modes, dimensions = mixture.means.shape
    latent = fvd.FieldSpec(name=LATENT, axes=("C", "T", "H", "W"), sizes={"C": dimensions}, source="latents")
    text = fvd.FieldSpec(name=TEXT, axes=("K",), sizes={"K": modes}, source="text")
    return PointsSpec(fields=(latent, text), text_padding_length=1, mixture=mixture)


class Points:
    """A `fvd.data.dataset.ChunkedDataset` of ``CHUNKS * CHUNK_SIZE`` points; a chunk is a function of its index and the
    mixture.

    A caption names no mode, one or two, with equal chances; the point comes from the modes that it names (none: from all).
    """

    def __init__(self, mixture: GaussianMixture) -> None:
        self._mixture = mixture
        modes, dimensions = mixture.means.shape
        self.chunk_sizes = [CHUNK_SIZE] * CHUNKS
        self.shapes: Mapping[str, Mapping[str, int]] = {LATENT: {"C": dimensions, "T": 1, "H": 1, "W": 1}, TEXT: {"K": modes}}
        self.sample_bytes = 4 * (dimensions + modes)

    def sample_ids(self, index: int) -> list[str]:
        return [f"point-{index * CHUNK_SIZE + row}" for row in range(CHUNK_SIZE)]

    def read_chunk(self, index: int) -> list[Sample]:
        generator = seeded_generator("toy points", index)
        modes = len(self._mixture.means)
        orders = torch.rand(CHUNK_SIZE, modes, generator=generator).argsort(dim=1)
        counts = torch.randint(3, (CHUNK_SIZE,), generator=generator)
        captions = [caption_of(sorted(order[:count])) for order, count in zip(orders.tolist(), counts.tolist(), strict=True)]
        embeddings = embed(captions, modes)
        points = self._mixture.sample(CHUNK_SIZE, generator, weights=embeddings).float().reshape(CHUNK_SIZE, -1, 1, 1, 1)
        return [
            Sample({LATENT: point, TEXT: embedding}, {"id": name, "caption": caption})
            for name, point, embedding, caption in zip(self.sample_ids(index), points, embeddings, captions, strict=True)
        ]


def open_points(sources: Sequence[tuple[Path, int]], spec: fvd.DataSpec, *, needs_latents: bool) -> Points:
    """The dataset kind of the toy families. There are no folders, and every sample has its latents. Raises DataError where
    trajectories are asked for: the points know no solver."""
    del sources, needs_latents
    if any(field.source == "trajectory" for field in spec.fields):
        raise fvd.DataError("the toy's data hold no trajectories of a teacher", cure="Regress on them with another family.")
    if not isinstance(spec, PointsSpec):
        raise TypeError(f"this kind of data needs a {PointsSpec.__name__}, got {type(spec).__name__}")
    return Points(spec.mixture)
