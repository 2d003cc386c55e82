"""The loader: an endless, resumable stream of batches from prepared data, built from a family's `DataSpec`."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fvd.data.dataset import ChunkedDataset, Sample
from fvd.data.held_out import HeldOutSamples, split_off
from fvd.data.order import Visit, epoch_visits, window_samples
from fvd.data.read_ahead import ReadAhead
from fvd.data.spec import DataSpec, FieldSpec, RawBatch
from fvd.errors import DataError

if TYPE_CHECKING:
    from fvd.config.models import RunConfig
    from fvd.plugins import Plugins


class Loader:
    """Iterating yields `RawBatch` without end; see `fvd.data.order` for the order.

    Batches run on over the end of an epoch and no sample is left out, so the stream of samples depends on neither
    ``batch_size`` nor ``read_ahead``. Floating point tensors come as float32.

    dropout_rate: share of samples marked ``dropped``, drawn by (seed, epoch, sample).
    latent_frames: crop the temporal axis of latents to the first so many.
    read_ahead: threads; 0 reads in the caller's.
    needs_latents: False accepts samples without the fields whose source is "latents".
    held_out: [N] bool, samples by number that are never yielded.
    Raises DataError for dropout where the family forbids it, and for data with fewer latent frames.
    """

    def __init__(
        self,
        dataset: ChunkedDataset,
        spec: DataSpec,
        *,
        batch_size: int,
        seed: int,
        dropout_rate: float = 0.0,
        latent_frames: int | None = None,
        read_ahead: int = 1,
        needs_latents: bool = True,
        held_out: Tensor | None = None,
    ) -> None:
        if dropout_rate > 0 and spec.conditioning_dropout == "forbidden":
            raise DataError(
                f"training.training_cfg_rate is {dropout_rate:g}, but this family forbids dropping the conditioning",
                cure="Set training.training_cfg_rate to 0.",
            )
        if sum(dataset.chunk_sizes) == 0:
            raise DataError("the data holds no samples", cure="Check training.data_path.")
        if latent_frames is not None:
            _check_latent_frames(dataset, spec, latent_frames)
        self.dataset = dataset
        self._window_size = window_samples(dataset.sample_bytes)
        self._spec = spec
        self._batch_size = batch_size
        self._seed = seed
        self._dropout_rate = dropout_rate
        self._latent_frames = latent_frames
        self._read_ahead = read_ahead
        self._needs_latents = needs_latents
        self.held_out = held_out
        self._samples_per_epoch = sum(dataset.chunk_sizes) - (0 if held_out is None else int(held_out.sum()))
        self._epoch = 0
        self._position = 0

    @property
    def samples_per_epoch(self) -> int:
        return self._samples_per_epoch

    @property
    def shapes(self) -> Mapping[str, Mapping[str, int]]:
        """For each field that every sample has, the sizes of the axes on which all samples agree."""
        return self.dataset.shapes

    @property
    def epoch(self) -> int:
        """The epoch of the next sample, from 0."""
        return self._epoch

    def state_dict(self) -> dict[str, int | str]:
        """How far the consumer is (what was read ahead does not count), and in which data."""
        return {"epoch": self._epoch, "position": self._position, "data": self.fingerprint}

    @property
    def fingerprint(self) -> str:
        """Equal for data of equal layout: the order of samples is a function of it and of the seed."""
        layout: list[object] = [self.dataset.chunk_sizes, self._window_size]
        if self.held_out is not None:
            layout.append(self.held_out.nonzero().flatten().tolist())
        return hashlib.blake2b(json.dumps(layout).encode(), digest_size=8).hexdigest()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue there: the next iterator yields what an uninterrupted one would have yielded next."""
        if state.get("data") != self.fingerprint:
            raise DataError(
                "the data in training.data_path is not the data that the checkpoint was written with",
                cure="Restore it, or name a new training.output_dir to start another run.",
            )
        self._epoch, self._position = state["epoch"], state["position"]

    def __iter__(self) -> Generator[RawBatch, None, None]:
        stream = ReadAhead(self.dataset, self._epochs(), threads=self._read_ahead, window_size=self._window_size).__iter__()
        try:
            while True:
                pairs = list(itertools.islice(stream, self._batch_size))
                batch = collate(
                    [sample for _, sample in pairs],
                    self._spec,
                    dropped=torch.tensor([visit.dropped for visit, _ in pairs]),
                    latent_frames=self._latent_frames,
                    needs_latents=self._needs_latents,
                )
                self._advance(len(pairs))
                yield batch
        finally:
            stream.close()  # ends the threads

    def _epochs(self) -> Iterator[list[Visit]]:
        position = self._position
        for epoch in itertools.count(self._epoch):
            yield epoch_visits(
                self.dataset.chunk_sizes,
                seed=self._seed,
                epoch=epoch,
                position=position,
                dropout_rate=self._dropout_rate,
                window_size=self._window_size,
                held_out=self.held_out,
            )
            position = 0

    def _advance(self, samples: int) -> None:
        epochs, self._position = divmod(self._position + samples, self.samples_per_epoch)
        self._epoch += epochs


def collate(
    samples: Sequence[Sample], spec: DataSpec, *, dropped: Tensor, latent_frames: int | None = None, needs_latents: bool = True
) -> RawBatch:
    """Stack samples: ragged fields padded with zeros (or cut) to ``spec.text_padding_length`` with a mask, latents
    cropped to their first ``latent_frames``. Raises DataError for a required field that a sample does not have and for
    shapes that cannot be stacked."""
    tensors: dict[str, Tensor] = {}
    on_host: dict[str, Tensor] = {}
    for field in spec.fields:
        lacking = [sample.info.get("id", "?") for sample in samples if field.name not in sample.tensors]
        if lacking:
            if field.required and (needs_latents or field.source != "latents"):
                raise DataError(f"clip {lacking[0]!r} has no {field.name}", cure="Prepare the data for this family again.")
            continue
        values = [_as_float32(sample.tensors[field.name]) for sample in samples]
        if field.ragged is not None:
            padded = [_pad(value, field.axes.index(field.ragged), spec.text_padding_length) for value in values]
            tensors[f"{field.name}_mask"] = torch.stack([mask for _, mask in padded])
            values = [value for value, _ in padded]
        elif field.source == "latents" and latent_frames is not None:
            axis = field.axes.index(spec.temporal_axis)
            values = [_crop(value, axis, latent_frames, field) for value in values]
        (on_host if field.on_host else tensors)[field.name] = _stack(values, samples, field)
    return RawBatch(tensors, dropped, [sample.info for sample in samples], on_host)


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _pad(value: Tensor, axis: int, length: int) -> tuple[Tensor, Tensor]:
    """``value`` with ``axis`` brought to ``length``, and the mask [length] of what is real."""
    kept = value.narrow(axis, 0, min(value.shape[axis], length))
    shape = list(value.shape)
    shape[axis] = length
    padded = value.new_zeros(shape)
    padded.narrow(axis, 0, kept.shape[axis]).copy_(kept)
    return padded, (torch.arange(length) < kept.shape[axis]).float()


def _crop(value: Tensor, axis: int, frames: int, field: FieldSpec) -> Tensor:
    if value.shape[axis] < frames:
        raise _too_few_frames(field.name, value.shape[axis], frames)
    return value.narrow(axis, 0, frames)


def _stack(values: list[Tensor], samples: Sequence[Sample], field: FieldSpec) -> Tensor:
    for value, sample in zip(values, samples, strict=True):
        if value.shape != values[0].shape:
            raise DataError(
                f"{field.name} of clip {sample.info.get('id', '?')!r} has shape {list(value.shape)}, but that of clip "
                f"{samples[0].info.get('id', '?')!r} has {list(values[0].shape)}",
                cure="A batch needs one shape: prepare the clips again with one size.",
            )
    return torch.stack(values)


def _check_latent_frames(dataset: ChunkedDataset, spec: DataSpec, latent_frames: int) -> None:
    for field in spec.fields:
        sizes = dataset.shapes.get(field.name, {})
        present = sizes.get(spec.temporal_axis, latent_frames)
        if field.source == "latents" and present < latent_frames:
            raise _too_few_frames(field.name, present, latent_frames)


def _too_few_frames(name: str, present: int, wanted: int) -> DataError:
    return DataError(
        f"training.num_latent_t is {wanted}, but {name} has {present} latent frames",
        cure=f"Set training.num_latent_t to {present} or less, or prepare longer clips (`fvd data prepare --num-frames`).",
    )


def build_loader(run: RunConfig, plugins: Plugins, kind: str, spec: DataSpec, *, needs_latents: bool) -> Loader:
    """The loader of a run: opens ``training.data_path`` with the dataset kind that the family's descriptor names."""
    training = run.training
    open_dataset = plugins.load("dataset_kind", kind)
    dataset: ChunkedDataset = open_dataset(training.data_sources(), spec, needs_latents=needs_latents)
    return Loader(
        dataset,
        spec,
        batch_size=training.train_batch_size,
        seed=training.seed,
        dropout_rate=training.training_cfg_rate,
        latent_frames=training.num_latent_t,
        read_ahead=training.dataloader_num_workers,
        needs_latents=needs_latents,
        held_out=split_off(dataset, seed=training.seed, share=training.validation_split) if training.validation_split else None,
    )


def build_held_out(run: RunConfig, plugins: Plugins, kind: str, spec: DataSpec, loader: Loader) -> HeldOutSamples | None:
    """What the run file holds out of training: a share of the loader's data, or ``training.validation_data_path``."""
    training = run.training
    if loader.held_out is not None:
        return HeldOutSamples.choose(loader.dataset, spec, training.validation_samples, among=loader.held_out)
    if training.validation_data_path is None:
        return None
    open_dataset = plugins.load("dataset_kind", kind)
    try:
        dataset: ChunkedDataset = open_dataset(training.validation_data_sources(), spec, needs_latents=True)
    except DataError as error:
        raise DataError(f"training.validation_data_path: {error.message}", cure=error.cure) from error
    return HeldOutSamples.choose(dataset, spec, training.validation_samples)
