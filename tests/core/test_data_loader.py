"""The stream of samples: a permutation every epoch, resumable anywhere, the same whatever the batch or the threads."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fvd.data.dataset import Sample
from fvd.data.loader import Loader, collate
from fvd.data.order import WINDOW_BYTES, WINDOW_SAMPLES, dropout_draws, epoch_order, window_samples
from fvd.data.spec import DataSpec, FieldSpec
from fvd.errors import DataError

SPEC = DataSpec(
    fields=(
        FieldSpec(name="latent", axes=("C", "T"), sizes={"C": 2}, source="latents"),
        FieldSpec(name="text", axes=("L", "D"), sizes={"D": 3}, source="text", ragged="L"),
    ),
    text_padding_length=4,
)


class MemoryDataset:
    """Chunks of the given sizes; sample n has id n. Records every read."""

    def __init__(
        self,
        chunk_sizes: list[int],
        *,
        text_only: bool = False,
        broken_chunk: int | None = None,
        sample_bytes: int = 100,
    ) -> None:
        self.chunk_sizes = chunk_sizes
        self.shapes = {"text": {"D": 3}} if text_only else {"latent": {"C": 2, "T": 5}, "text": {"D": 3}}
        self.sample_bytes = sample_bytes
        self.reads: list[int] = []
        self._text_only = text_only
        self._broken_chunk = broken_chunk

    def sample_ids(self, index: int) -> list[str]:
        first = sum(self.chunk_sizes[:index])
        return [str(first + row) for row in range(self.chunk_sizes[index])]

    def read_chunk(self, index: int) -> list[Sample]:
        self.reads.append(index)
        if index == self._broken_chunk:
            raise DataError(f"chunk {index} is broken")
        first = sum(self.chunk_sizes[:index])
        return [self._sample(first + row) for row in range(self.chunk_sizes[index])]

    def _sample(self, number: int) -> Sample:
        text = torch.full((1 + number % 6, 3), float(number))
        latent = number + torch.arange(10.0).reshape(2, 5)
        return Sample({"text": text} if self._text_only else {"text": text, "latent": latent}, {"id": number})


def make(dataset: MemoryDataset, *, batch_size: int = 2, seed: int = 7, read_ahead: int = 0, **options: object) -> Loader:
    return Loader(dataset, SPEC, batch_size=batch_size, seed=seed, read_ahead=read_ahead, **options)  # type: ignore[arg-type]


def stream(loader: Loader, samples: int) -> list[tuple[object, bool]]:
    """The next samples: (id, dropped)."""
    pairs: list[tuple[object, bool]] = []
    for batch in loader:
        pairs += zip([info["id"] for info in batch.info], batch.dropped.tolist(), strict=True)
        if len(pairs) >= samples:
            return pairs[:samples]
    raise AssertionError("the stream ended")


SIZES = [3, 5, 1, 4, 200, 100, 7, 80]
TOTAL = sum(SIZES)


def test_every_epoch_is_another_permutation() -> None:
    ids = [number for number, _ in stream(make(MemoryDataset(SIZES)), 3 * TOTAL)]
    epochs = [ids[start : start + TOTAL] for start in range(0, 3 * TOTAL, TOTAL)]
    assert all(sorted(epoch) == list(range(TOTAL)) for epoch in epochs)  # type: ignore[type-var]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    assert torch.equal(epoch_order(SIZES, seed=1, epoch=2), epoch_order(SIZES, seed=1, epoch=2))
    orders = {tuple(epoch_order(SIZES, seed=seed, epoch=epoch).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_the_order_does_not_change_between_versions() -> None:
    """A golden order: resuming an old checkpoint relies on it."""
    assert epoch_order([3, 2, 4], seed=0, epoch=0).tolist() == GOLDEN_ORDER


GOLDEN_ORDER = [7, 4, 1, 5, 2, 0, 3, 6, 8]


def test_neighbours_in_a_chunk_are_not_neighbours_in_the_stream() -> None:
    order = epoch_order([16] * 64, seed=0, epoch=0)
    follows = (order[1:] - order[:-1] == 1).float().mean()
    assert follows < 0.02  # about 1 / window by chance; 15 / 16 without shuffling inside
    correlation = torch.corrcoef(torch.stack([order.float(), torch.arange(1024).float()]))[0, 1]
    assert abs(correlation) < 0.2  # chunks are shuffled too


def test_windows_hold_whole_chunks() -> None:
    """A window of w samples visits only its own chunks: each is read once."""
    sizes = [10] * 100
    order = epoch_order(sizes, seed=3, epoch=0)
    per_window = -(-WINDOW_SAMPLES // 10) * 10
    for start in range(0, 1000, per_window):
        chunks = Counter((order[start : start + per_window] // 10).tolist())
        assert set(chunks.values()) == {10}


@pytest.mark.parametrize("read_ahead", [0, 1, 3])
def test_each_chunk_is_read_once_an_epoch(read_ahead: int) -> None:
    dataset = MemoryDataset([4] * 200)
    loader = make(dataset, read_ahead=read_ahead)
    iterator = iter(loader)
    for _ in range(400):
        next(iterator)
    first_epoch = dataset.reads[:200]
    iterator.close()  # type: ignore[attr-defined]
    assert sorted(first_epoch) == list(range(200))
    assert len(dataset.reads) - 200 <= (0 if read_ahead == 0 else WINDOW_SAMPLES // 4 + read_ahead + 1)


def test_neither_batch_size_nor_read_ahead_changes_the_stream() -> None:
    expected = stream(make(MemoryDataset(SIZES), batch_size=1, dropout_rate=0.3), 900)
    for batch_size, read_ahead in itertools.product([3, 64], [0, 1, 4]):
        loader = make(MemoryDataset(SIZES), batch_size=batch_size, read_ahead=read_ahead, dropout_rate=0.3)
        assert stream(loader, 900) == expected


@pytest.mark.parametrize("read_ahead", [0, 2])
@pytest.mark.parametrize("consumed", [0, 1, 7, 199, 200, 201, 333])
def test_resume_yields_exactly_the_rest(consumed: int, read_ahead: int) -> None:
    whole = stream(make(MemoryDataset(SIZES), batch_size=2, dropout_rate=0.5), 2 * consumed + 900)
    first = make(MemoryDataset(SIZES), batch_size=2, dropout_rate=0.5, read_ahead=read_ahead)
    if consumed:
        stream(first, 2 * consumed)
    state = first.state_dict()
    expected = {"epoch": 2 * consumed // TOTAL, "position": 2 * consumed % TOTAL, "data": first.fingerprint}
    assert state == expected
    second = make(MemoryDataset(SIZES), batch_size=2, dropout_rate=0.5, read_ahead=read_ahead)
    second.load_state_dict(state)
    assert second.epoch == state["epoch"]
    assert stream(second, 900) == whole[2 * consumed :]


def test_resume_reads_only_what_is_still_to_come() -> None:
    dataset = MemoryDataset([1] * 20)
    loader = make(dataset, batch_size=1)
    loader.load_state_dict(loader.state_dict() | {"position": 15})
    stream(loader, 5)
    assert sorted(dataset.reads) == sorted(epoch_order([1] * 20, seed=7, epoch=0)[15:].tolist())


def test_state_counts_what_was_yielded_not_what_was_read_ahead() -> None:
    dataset = MemoryDataset([2] * 10)
    loader = make(dataset, batch_size=3, read_ahead=2)
    iterator = iter(loader)
    next(iterator)
    assert loader.state_dict() == {"epoch": 0, "position": 3, "data": loader.fingerprint}
    next(iterator)
    assert loader.state_dict() == {"epoch": 0, "position": 6, "data": loader.fingerprint}
    iterator.close()  # type: ignore[attr-defined]


def test_a_second_iterator_goes_on_where_the_first_was() -> None:
    loader = make(MemoryDataset(SIZES), batch_size=1)
    expected = stream(make(MemoryDataset(SIZES), batch_size=1), 10)
    assert stream(loader, 4) + stream(loader, 6) == expected


def test_data_smaller_than_a_batch() -> None:
    batch = next(iter(make(MemoryDataset([1, 1]), batch_size=5)))
    ids = [info["id"] for info in batch.info]
    assert batch.batch_size == 5
    assert sorted(ids[:2]) == sorted(ids[2:4]) == [0, 1]  # type: ignore[type-var]


def test_errors_of_a_thread_reach_the_consumer_and_threads_end() -> None:
    before = threading.active_count()
    with pytest.raises(DataError, match="chunk 3 is broken"):
        stream(make(MemoryDataset(SIZES, broken_chunk=3), read_ahead=2), TOTAL)
    iterator = iter(make(MemoryDataset(SIZES), read_ahead=3))
    next(iterator)
    assert threading.active_count() > before
    iterator.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def chunks_read_ahead(loader: Loader, dataset: MemoryDataset) -> int:
    """How many chunks are in memory when one batch was taken and the threads have come to rest."""
    iterator = iter(loader)
    next(iterator)
    before = -1
    while len(dataset.reads) > before:
        before = len(dataset.reads)
        time.sleep(0.05)
    iterator.close()  # type: ignore[attr-defined]
    return before


def test_the_window_is_bounded_in_bytes() -> None:
    """A video at 480p with its text is about 10 MB: 256 of them would be 2.5 GB."""
    assert window_samples(10_000_000) == 107  # 2**30 / 10**7
    assert window_samples(4096) == WINDOW_SAMPLES
    assert window_samples(2 * WINDOW_BYTES) == 1
    sizes, held = [8] * 64, 32
    dataset = MemoryDataset(sizes, sample_bytes=WINDOW_BYTES // held)
    order = epoch_order(sizes, seed=7, epoch=0, window_size=held)
    for start in range(0, 512, held):
        assert len(set((order[start : start + held] // 8).tolist())) == held // 8  # only its own chunks
    loader = make(dataset, read_ahead=2)
    assert [number for number, _ in stream(loader, 512)] == order.tolist()
    dataset.reads.clear()
    assert held <= 8 * chunks_read_ahead(make(dataset, read_ahead=2), dataset) <= held + 3 * 8


@pytest.mark.parametrize("consumed", [3, 130, 300])
def test_resume_in_small_windows(consumed: int) -> None:
    def open_again() -> Loader:
        return make(MemoryDataset([8] * 32, sample_bytes=WINDOW_BYTES // 24), batch_size=1, read_ahead=1)

    whole = stream(open_again(), consumed + 100)
    first, second = open_again(), open_again()
    stream(first, consumed)
    second.load_state_dict(first.state_dict())
    assert stream(second, 100) == whole[consumed:]


def test_read_ahead_is_bounded() -> None:
    dataset = MemoryDataset([8] * 500)
    assert WINDOW_SAMPLES <= 8 * chunks_read_ahead(make(dataset, read_ahead=2), dataset) <= WINDOW_SAMPLES + 3 * 8


# --- conditioning dropout ---------------------------------------------------------------------------------------------
def test_dropout_has_its_rate_and_changes_with_the_epoch() -> None:
    rate, samples = 0.1, 20_000
    first, second = (dropout_draws(samples, seed=0, epoch=epoch, rate=rate) for epoch in (0, 1))
    deviation = (rate * (1 - rate) / samples) ** 0.5
    assert abs(first.float().mean() - rate) < 4 * deviation
    assert abs((first & second).float().mean() - rate**2) < 4 * deviation  # independent of the epoch before
    assert not dropout_draws(samples, seed=0, epoch=0, rate=0.0).any()
    assert dropout_draws(samples, seed=0, epoch=0, rate=1.0).all()


def test_dropout_belongs_to_the_sample() -> None:
    pairs = stream(make(MemoryDataset(SIZES), dropout_rate=0.4), TOTAL)
    expected = dropout_draws(TOTAL, seed=7, epoch=0, rate=0.4).tolist()
    assert all(dropped == expected[number] for number, dropped in pairs)  # type: ignore[index]


def test_a_family_may_forbid_dropout() -> None:
    spec = DataSpec(fields=SPEC.fields, text_padding_length=4, conditioning_dropout="forbidden")
    Loader(MemoryDataset([1]), spec, batch_size=1, seed=0)
    with pytest.raises(DataError, match=r"training_cfg_rate is 0.1"):
        Loader(MemoryDataset([1]), spec, batch_size=1, seed=0, dropout_rate=0.1)


# --- batches ----------------------------------------------------------------------------------------------------------
def sample(number: int, text: Tensor, latent: Tensor | None = None) -> Sample:
    return Sample({"text": text} if latent is None else {"text": text, "latent": latent}, {"id": number})


def test_text_is_padded_or_cut_with_a_mask() -> None:
    short, long = torch.arange(6.0).reshape(2, 3), torch.arange(18.0).reshape(6, 3)
    batch = collate(
        [sample(0, short.half(), torch.zeros(2, 5)), sample(1, long.half(), torch.ones(2, 5))],
        SPEC,
        dropped=torch.tensor([True, False]),
    )
    assert torch.equal(batch.tensors["text"], torch.stack([torch.cat([short, torch.zeros(2, 3)]), long[:4]]))
    assert batch.tensors["text"].dtype == torch.float32
    assert torch.equal(batch.tensors["text_mask"], torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 1]]))
    assert batch.tensors["latent"].shape == (2, 2, 5)
    assert batch.dropped.tolist() == [True, False]
    assert batch.info == [{"id": 0}, {"id": 1}]


def test_latent_frames_crop_the_temporal_axis() -> None:
    batch = next(iter(make(MemoryDataset([1]), batch_size=1, latent_frames=3)))
    assert torch.equal(batch.tensors["latent"], torch.tensor([[[0.0, 1, 2], [5, 6, 7]]]))
    with pytest.raises(DataError, match="num_latent_t is 6, but latent has 5 latent frames"):
        make(MemoryDataset([1]), latent_frames=6)


def test_text_only_data() -> None:
    dataset = MemoryDataset([3], text_only=True)
    batch = next(iter(make(dataset, needs_latents=False, latent_frames=9)))
    assert set(batch.tensors) == {"text", "text_mask"}
    with pytest.raises(DataError, match="has no latent"):
        next(iter(make(dataset)))


def test_shapes_that_do_not_stack_are_named() -> None:
    text = torch.zeros(1, 3)
    with pytest.raises(DataError, match=r"latent of clip 8 has shape \[2, 4\], but that of clip 3 has \[2, 5\]"):
        collate([sample(3, text, torch.zeros(2, 5)), sample(8, text, torch.zeros(2, 4))], SPEC, dropped=torch.zeros(2).bool())


@pytest.mark.parametrize(
    "other",
    [
        MemoryDataset([4, 4]),
        MemoryDataset([4, 4, 4, 4]),
        MemoryDataset([4, 5, 3]),  # as many samples, in another order
        MemoryDataset([4, 4, 4], sample_bytes=WINDOW_BYTES // 8),  # shuffled in another window
    ],
    ids=["less", "more", "other chunks", "other window"],
)
def test_a_position_in_other_data_is_refused(other: MemoryDataset) -> None:
    state = make(MemoryDataset([4, 4, 4])).state_dict() | {"position": 9}
    loader = make(other)
    with pytest.raises(DataError, match="not the data that the checkpoint was written with"):
        loader.load_state_dict(state)
    assert (loader.epoch, loader.state_dict()["position"]) == (0, 0)
    same = make(MemoryDataset([4, 4, 4]), batch_size=5, read_ahead=2)
    same.load_state_dict(state)
    assert same.state_dict() == state


def test_no_samples_are_refused() -> None:
    with pytest.raises(DataError, match="no samples"):
        make(MemoryDataset([]))


def test_build_loader_reads_the_run_file(tmp_path: Path) -> None:
    from fvd.config.models import MethodConfig, PipelineConfig, Recipe, RoleConfig, RunConfig, TrainingConfig
    from fvd.data.loader import build_loader

    opened: list[object] = []

    class FakePlugins:
        def load(self, kind: str, name: str) -> object:
            assert (kind, name) == ("dataset_kind", "memory")
            return self.open

        def open(self, sources: object, spec: DataSpec, *, needs_latents: bool) -> MemoryDataset:
            opened.append((sources, spec, needs_latents))
            return MemoryDataset([6])

    run = RunConfig(
        recipe=Recipe(family="toy", method="toy"),
        roles={"student": RoleConfig(path="x")},
        training=TrainingConfig(
            output_dir="out",
            max_train_steps=1,
            data_path="a:2,b",
            seed=5,
            train_batch_size=3,
            num_latent_t=2,
            training_cfg_rate=1.0,
            dataloader_num_workers=0,
        ),
        pipeline_config=PipelineConfig(),
        method_config=MethodConfig(),
    )
    batch = next(iter(build_loader(run, FakePlugins(), "memory", SPEC, needs_latents=True)))  # type: ignore[arg-type]
    assert opened == [([(Path("a"), 2), (Path("b"), 1)], SPEC, True)]
    assert batch.tensors["latent"].shape == (3, 2, 2)
    assert batch.dropped.all()
    assert [info["id"] for info in batch.info] == epoch_order([6], seed=5, epoch=0)[:3].tolist()
