"""What is held out of training: the same share of the ids always, and never trained on."""

from __future__ import annotations

import math
import weakref

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from fvd.data.dataset import Sample
from fvd.data.held_out import HeldOutSamples, split_off
from fvd.data.loader import Loader
from fvd.data.parquet import T2V_SCHEMA, open_parquet
from fvd.data.spec import DataSpec, FieldSpec
from fvd.errors import DataError

SPEC = DataSpec(fields=(FieldSpec(name="latent", axes=("C",), sizes={"C": 1}, source="latents"),), text_padding_length=1)


class Numbers:
    """Chunks of the given sizes; the sample of place n has the id ``names[n]``, by default n. Counts what is held in memory."""

    def __init__(self, chunk_sizes: list[int], names: list[str] | None = None) -> None:
        self.chunk_sizes = chunk_sizes
        self.shapes: dict[str, dict[str, int]] = {"latent": {"C": 1}}
        self.sample_bytes = 4
        self.names = names or [str(number) for number in range(sum(chunk_sizes))]

    def sample_ids(self, index: int) -> list[str]:
        first = sum(self.chunk_sizes[:index])
        return self.names[first : first + self.chunk_sizes[index]]

    def read_chunk(self, index: int) -> list[Sample]:
        return [Sample({"latent": torch.zeros(1)}, {"id": name}) for name in self.sample_ids(index)]


def trained_ids(loader: Loader, samples: int) -> list[object]:
    ids: list[object] = []
    for batch in loader:
        ids += [info["id"] for info in batch.info]
        if len(ids) >= samples:
            return ids[:samples]
    raise AssertionError("the stream ended")


def ids_of(dataset: Numbers, held_out: Tensor) -> set[str]:
    return {name for name, is_held_out in zip(dataset.names, held_out.tolist(), strict=True) if is_held_out}


# --- the split -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("read_ahead", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_an_epoch_is_everything_but_what_is_held_out(batch_size, read_ahead):
    dataset = Numbers([3, 40, 1, 200, 56])
    held_out = split_off(dataset, seed=0, share=0.3)
    loader = Loader(dataset, SPEC, batch_size=batch_size, seed=1, read_ahead=read_ahead, held_out=held_out)
    left = loader.samples_per_epoch
    assert left == 300 - int(held_out.sum())
    ids = trained_ids(loader, 3 * left)
    expected = sorted(set(dataset.names) - ids_of(dataset, held_out))
    assert all(sorted(ids[start : start + left]) == expected for start in (0, left, 2 * left))


def test_the_share_is_met_and_the_seed_decides():
    dataset = Numbers([10_000])
    held_out = split_off(dataset, seed=0, share=0.2)
    assert abs(float(held_out.float().mean()) - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 10_000)
    assert torch.equal(held_out, split_off(dataset, seed=0, share=0.2))
    other = split_off(dataset, seed=1, share=0.2)
    assert abs(float((held_out & other).float().mean()) - 0.04) < 4 * math.sqrt(0.04 * 0.96 / 10_000)


def test_more_data_and_another_order_change_no_samples_side():
    before = Numbers([50, 50])
    after = Numbers([30, 100], [f"new-{n}" for n in range(30)] + before.names[::-1])
    was, now = (ids_of(dataset, split_off(dataset, seed=3, share=0.4)) for dataset in (before, after))
    assert {name for name in now if not name.startswith("new-")} == was


def test_all_copies_of_a_sample_are_held_out():
    names = [str(number % 20) for number in range(60)]
    dataset = Numbers([20, 20, 20], names)
    held_out = split_off(dataset, seed=0, share=0.25)
    seen = trained_ids(Loader(dataset, SPEC, batch_size=4, seed=0, held_out=held_out), 60)
    assert not set(seen) & ids_of(dataset, held_out)
    chosen = HeldOutSamples.choose(dataset, SPEC, 100, among=held_out)
    assert sorted(chosen.ids.values()) == sorted(ids_of(dataset, held_out))  # each once


@pytest.mark.parametrize("consumed", [1, 50, 130])
def test_a_resume_trains_on_the_same_samples(consumed):
    def open_again() -> Loader:
        dataset = Numbers([8] * 12)
        return Loader(dataset, SPEC, batch_size=1, seed=2, read_ahead=1, held_out=split_off(dataset, seed=2, share=0.5))

    whole = trained_ids(open_again(), consumed + 80)
    first, second = open_again(), open_again()
    trained_ids(first, consumed)
    second.load_state_dict(first.state_dict())
    assert trained_ids(second, 80) == whole[consumed:]


def test_a_position_under_another_split_is_refused():
    dataset = Numbers([40])
    state = Loader(dataset, SPEC, batch_size=1, seed=0).state_dict()
    split = Loader(dataset, SPEC, batch_size=1, seed=0, held_out=split_off(dataset, seed=0, share=0.3))
    with pytest.raises(DataError, match="not the data that the checkpoint was written with"):
        split.load_state_dict(state)


def test_what_is_held_out_does_not_stay_in_memory():
    """Else an epoch would hold it until its end, and reading ahead would stop."""
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()

    class Watched(Numbers):
        def read_chunk(self, index: int) -> list[Sample]:
            samples = super().read_chunk(index)
            alive.update(sample.tensors["latent"] for sample in samples)
            return samples

    dataset = Watched([10] * 400)
    loader = Loader(dataset, SPEC, batch_size=1, seed=0, read_ahead=1, held_out=split_off(dataset, seed=0, share=0.5))
    batches = iter(loader)
    for _ in range(1900):
        next(batches)
    assert len(alive) < 400
    batches.close()


@pytest.mark.parametrize(("share", "fate"), [(1e-9, "holds no sample out"), (0.999999, "leaves no sample to train on")])
def test_a_split_of_nothing_or_of_all_is_refused(share, fate):
    with pytest.raises(DataError, match=f"of 4 samples .* {fate}"):
        split_off(Numbers([4]), seed=0, share=share)


def test_so_many_samples_at_most_the_same_for_the_same_ids():
    dataset = Numbers([30, 30])
    chosen = HeldOutSamples.choose(dataset, SPEC, 10)
    assert len(chosen.ids) == 10
    assert list(chosen.ids) == sorted(chosen.ids)
    turned = HeldOutSamples.choose(Numbers([60], dataset.names[::-1]), SPEC, 10)
    assert set(turned.ids.values()) == set(chosen.ids.values())
    read = [(name, sample.info["id"]) for batch in chosen.batches(4) for name, sample in batch]
    assert [len(batch) for batch in chosen.batches(4)] == [4, 4, 2]
    assert [name for name, _ in read] == [own for _, own in read] == list(chosen.ids.values())


def test_ids_of_parquet_rows(tmp_path):
    field = FieldSpec(name="text_embedding", axes=("L",), sizes={}, source="text", ragged="L")
    spec = DataSpec(fields=(field,), text_padding_length=1)
    text = {"text_embedding_bytes": bytes(4), "text_embedding_shape": [1], "text_embedding_dtype": "float32"}
    rows = [{"id": name, **text} for name in ("a", "", None, "b")]
    pq.write_table(pa.Table.from_pylist(rows, schema=T2V_SCHEMA), tmp_path / "clips.parquet", row_group_size=3)
    data = open_parquet([(tmp_path, 2)], spec, needs_latents=False)
    ids = [data.sample_ids(chunk) for chunk in range(4)]
    assert ids[:2] == [["a", "clips.parquet/0/1", "clips.parquet/0/2"], ["b"]]
    assert ids[2:] == ids[:2]  # a repeated folder
    without = pa.Table.from_pylist([text]).select(list(text))
    pq.write_table(without, tmp_path / "clips.parquet")
    assert open_parquet([(tmp_path, 1)], spec, needs_latents=False).sample_ids(0) == ["clips.parquet/0/0"]
