"""The parquet kind: the schema, an independent writer, and every way in which files can be wrong."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fvd.data.parquet import T2V_SCHEMA, TEXT_ONLY_SCHEMA, ParquetClipWriter, open_parquet
from fvd.data.parquet_schema import pack_tensor, unpack_tensor
from fvd.data.spec import DataSpec, FieldSpec
from fvd.errors import DataError, FvdError

SPEC = DataSpec(
    fields=(
        FieldSpec(name="vae_latent", axes=("C", "T", "H", "W"), sizes={"C": 4}, source="latents"),
        FieldSpec(name="text_embedding", axes=("L", "D"), sizes={"D": 6}, source="text", ragged="L"),
    ),
    text_padding_length=8,
)


def reference_row(number: int, **changes: object) -> dict[str, object]:
    """A row as a program that knows only the schema writes it: numpy, no fvd."""
    rng = np.random.default_rng(number)
    latent = rng.standard_normal((4, 3, 2, 2)).astype(np.float32)
    text = rng.standard_normal((1 + number % 5, 6)).astype(np.float32)
    return {
        "id": f"clip-{number}",
        "vae_latent_bytes": latent.tobytes(),
        "vae_latent_shape": list(latent.shape),
        "vae_latent_dtype": str(latent.dtype),
        "text_embedding_bytes": text.tobytes(),
        "text_embedding_shape": list(text.shape),
        "text_embedding_dtype": str(text.dtype),
        "file_name": f"{number}.mp4",
        "caption": f"caption {number}",
        "media_type": "video",
        "width": 16,
        "height": 16,
        "num_frames": 3,
        "duration_sec": 0.5625,
        "fps": 16.0,
    } | changes


def write_rows(
    folder: Path, rows: list[dict[str, object]], *, name: str = "worker_0/data_chunk_0.parquet", group: int = 2
) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=T2V_SCHEMA), folder / name, compression="zstd", row_group_size=group)


def test_the_t2v_schema_field_for_field() -> None:
    triplet = [("bytes", "binary"), ("shape", "list<item: int64>"), ("dtype", "string")]
    expected = [("id", "string")]
    expected += [(f"vae_latent_{part}", kind) for part, kind in triplet]
    expected += [(f"text_embedding_{part}", kind) for part, kind in triplet]
    expected += [("file_name", "string"), ("caption", "string"), ("media_type", "string")]
    expected += [
        ("width", "int64"),
        ("height", "int64"),
        ("num_frames", "int64"),
        ("duration_sec", "double"),
        ("fps", "double"),
    ]
    assert [(field.name, str(field.type)) for field in T2V_SCHEMA] == expected
    text_only = [expected[0], *expected[4:7], ("caption", "string")]
    assert [(field.name, str(field.type)) for field in TEXT_ONLY_SCHEMA] == text_only
    assert all(field.nullable for field in [*T2V_SCHEMA, *TEXT_ONLY_SCHEMA])


def test_rows_of_an_independent_writer_come_back_bit_for_bit(tmp_path: Path) -> None:
    rows = [reference_row(number) for number in range(5)]
    write_rows(tmp_path, rows)
    data = open_parquet([(tmp_path, 1)], SPEC, needs_latents=True)
    assert data.chunk_sizes == [2, 2, 1]
    assert data.shapes == {"vae_latent": {"C": 4, "T": 3, "H": 2, "W": 2}, "text_embedding": {"D": 6}}
    samples = [sample for chunk in range(3) for sample in data.read_chunk(chunk)]
    for row, sample in zip(rows, samples, strict=True):
        assert sample.tensors["vae_latent"].numpy().tobytes() == row["vae_latent_bytes"]
        assert list(sample.tensors["text_embedding"].shape) == row["text_embedding_shape"]
        assert sample.tensors["text_embedding"].numpy().tobytes() == row["text_embedding_bytes"]
        metadata = ("id", "file_name", "caption", "media_type", "width", "height", "num_frames", "duration_sec", "fps")
        assert sample.info == {name: row[name] for name in metadata}


def test_what_we_write_reads_as_the_schema_says(tmp_path: Path) -> None:
    """The other direction: read with numpy and pyarrow alone."""
    writer = ParquetClipWriter(tmp_path, T2V_SCHEMA, rows_per_file=2)
    latents = torch.randn(3, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for number, latent in enumerate(latents):
        writer.append(reference_row(number) | pack_tensor("vae_latent", latent.transpose(0, 1).contiguous().transpose(0, 1)))
    writer.close()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == [
        "worker_0/data_chunk_0.parquet",
        "worker_0/data_chunk_1.parquet",
    ]
    file = pq.ParquetFile(tmp_path / "worker_0/data_chunk_0.parquet")
    assert file.schema_arrow.equals(T2V_SCHEMA)
    assert file.metadata.row_group(0).column(1).compression == "ZSTD"
    table = pa.concat_tables([pq.ParquetFile(path).read() for path in sorted(tmp_path.rglob("*.parquet"))])
    for latent, row in zip(latents, table.to_pylist(), strict=True):
        array = np.frombuffer(row["vae_latent_bytes"], row["vae_latent_dtype"]).reshape(row["vae_latent_shape"])
        np.testing.assert_array_equal(array, latent.numpy())
    assert table["id"].to_pylist() == ["clip-0", "clip-1", "clip-2"]


def test_the_mean_size_of_a_sample_is_what_is_read(tmp_path: Path) -> None:
    latent = np.zeros((4, 3, 2, 2), np.float16)
    half = {"vae_latent_bytes": latent.tobytes(), "vae_latent_dtype": "float16"}
    write_rows(tmp_path, [reference_row(0), reference_row(1, **half), reference_row(4)])
    data = open_parquet([(tmp_path, 3)], SPEC, needs_latents=True)
    samples = [sample for chunk in range(2) for sample in data.read_chunk(chunk)]
    assert data.sample_bytes == sum(tensor.nbytes for sample in samples for tensor in sample.tensors.values()) // 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64])
def test_the_dtype_column_is_honoured(dtype: torch.dtype) -> None:
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    data = bytes(tensor.view(torch.uint8).numpy())
    for name in (str(dtype).removeprefix("torch."), str(dtype)):
        back = unpack_tensor(data, [3, 4], name)
        assert back.dtype == dtype
        assert torch.equal(back, tensor)
    with pytest.raises(DataError, match=f"{len(data) - 1} bytes"):
        unpack_tensor(data[1:], [3, 4], str(dtype))


def test_the_dtype_column_decides_how_a_row_is_read(tmp_path: Path) -> None:
    """Read as float32, as programs do that ignore the column, half the values would be missing."""
    latent = np.arange(48, dtype=np.float16).reshape(4, 3, 2, 2)
    half = {"vae_latent_bytes": latent.tobytes(), "vae_latent_dtype": "float16"}
    write_rows(tmp_path, [reference_row(0, **half)])
    (sample,) = open_parquet([(tmp_path, 1)], SPEC, needs_latents=True).read_chunk(0)
    np.testing.assert_array_equal(sample.tensors["vae_latent"].numpy(), latent)


def test_repeats_and_order_of_sources(tmp_path: Path) -> None:
    write_rows(tmp_path / "a", [reference_row(0)])
    write_rows(tmp_path / "b", [reference_row(1)], name="deep/er/x.parquet")
    data = open_parquet([(tmp_path / "b", 2), (tmp_path / "a", 1)], SPEC, needs_latents=True)
    assert [data.read_chunk(index)[0].info["id"] for index in range(3)] == ["clip-1", "clip-1", "clip-0"]


def test_text_only_data_serves_where_no_latents_are_needed(tmp_path: Path) -> None:
    row = {name: value for name, value in reference_row(0).items() if name in TEXT_ONLY_SCHEMA.names}
    pq.write_table(pa.Table.from_pylist([row], schema=TEXT_ONLY_SCHEMA), tmp_path / "t.parquet")
    (sample,) = open_parquet([(tmp_path, 1)], SPEC, needs_latents=False).read_chunk(0)
    assert set(sample.tensors) == {"text_embedding"}
    with pytest.raises(DataError, match="no column vae_latent_bytes"):
        open_parquet([(tmp_path, 1)], SPEC, needs_latents=True)


def test_latents_that_are_there_are_kept_where_none_are_needed(tmp_path: Path) -> None:
    write_rows(tmp_path, [reference_row(0)])
    (sample,) = open_parquet([(tmp_path, 1)], SPEC, needs_latents=False).read_chunk(0)
    assert sample.tensors["vae_latent"].shape == (4, 3, 2, 2)


def test_all_problems_at_once_with_their_places(tmp_path: Path) -> None:
    rows = [reference_row(number) for number in range(7)]
    rows[1]["vae_latent_shape"] = [4, 2, 2, 3]  # as many bytes, another shape
    rows[2]["vae_latent_shape"] = [2, 6, 2, 2]
    rows[3]["vae_latent_shape"] = [48]
    rows[4]["text_embedding_dtype"] = "complex64"
    rows[5] |= {"text_embedding_bytes": b"", "text_embedding_shape": [], "text_embedding_dtype": ""}
    write_rows(tmp_path, rows)
    with pytest.raises(DataError) as caught:
        open_parquet([(tmp_path, 1)], SPEC, needs_latents=True)
    message = caught.value.message
    assert (
        "row group 0, row 1, clip 'clip-1': vae_latent has [C, T, H, W] = [4, 2, 2, 3], but 4 rows have [4, 3, 2, 2]" in message
    )
    assert "row group 1, row 0, clip 'clip-2': vae_latent has shape [2, 6, 2, 2], expected [C, T, H, W] with C = 4" in message
    assert "clip 'clip-3': vae_latent has shape [48], expected 4 axes" in message
    assert "clip 'clip-4': text_embedding has dtype 'complex64'" in message
    assert "row group 2, row 1, clip 'clip-5': no text_embedding" in message
    assert "data_chunk_0.parquet" in message
    assert "fvd data prepare" in caught.value.cure


def test_many_problems_are_counted_not_listed(tmp_path: Path) -> None:
    write_rows(tmp_path, [reference_row(number, vae_latent_shape=[48]) for number in range(50)], group=50)
    with pytest.raises(DataError, match="50 problems") as caught:
        open_parquet([(tmp_path, 1)], SPEC, needs_latents=True)
    assert "… and 30 more" in caught.value.message


def test_columns_of_a_wrong_type_or_name(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([reference_row(0)], schema=T2V_SCHEMA)
    text = table.set_column(2, "vae_latent_shape", pa.array(["4,3,2,2"]))
    pq.write_table(text, tmp_path / "a.parquet")
    pq.write_table(table.rename_columns({"text_embedding_bytes": "text_embeddings_bytes"}), tmp_path / "b.parquet")
    with pytest.raises(DataError) as caught:
        open_parquet([(tmp_path, 1)], SPEC, needs_latents=True)
    assert "a.parquet: column vae_latent_shape is string, not a list of integers" in caught.value.message
    assert "b.parquet: no column text_embedding_bytes (did you mean 'text_embeddings_bytes'?)" in caught.value.message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_latent_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    latent = np.zeros((4, 3, 2, 2), np.float32)
    latent[0, 0, 0, 0] = value
    write_rows(tmp_path, [reference_row(0), reference_row(1), reference_row(2, vae_latent_bytes=latent.tobytes())])
    data = open_parquet([(tmp_path, 1)], SPEC, needs_latents=True)
    data.read_chunk(0)
    with pytest.raises(DataError, match=r"row group 1, row 0, clip 'clip-2': vae_latent: 1 of 48 values are NaN or infinite"):
        data.read_chunk(1)


def test_a_wrong_number_of_bytes_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path, [reference_row(0, vae_latent_bytes=b"\0" * 100)])
    with pytest.raises(DataError, match=r"clip 'clip-0': vae_latent: 100 bytes where float32 of shape \[4, 3, 2, 2\] has 192"):
        open_parquet([(tmp_path, 1)], SPEC, needs_latents=True).read_chunk(0)


def test_folders_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_parquet([(tmp_path / "absent", 1)], SPEC, needs_latents=True)
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(DataError, match="no parquet files") as caught:
        open_parquet([(tmp_path, 1)], SPEC, needs_latents=True)
    assert "fvd data prepare" in caught.value.cure
    write_rows(tmp_path, [])
    with pytest.raises(DataError, match="no rows"):
        open_parquet([(tmp_path, 1)], SPEC, needs_latents=True)
    whole = tmp_path / "worker_0/data_chunk_0.parquet"
    whole.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as parquet"):
        open_parquet([(tmp_path, 1)], SPEC, needs_latents=True)


# --- the writer -------------------------------------------------------------------------------------------------------
def test_rows_survive_a_writer_that_is_never_closed(tmp_path: Path) -> None:
    killed = ParquetClipWriter(tmp_path, T2V_SCHEMA, rows_per_file=2)
    for number in range(3):
        killed.append(reference_row(number))
    assert len(list(tmp_path.rglob("*.parquet"))) == 1
    with pytest.raises(DataError, match="not complete"):
        open_parquet([(tmp_path, 1)], SPEC, needs_latents=True)

    again = ParquetClipWriter(tmp_path, T2V_SCHEMA, rows_per_file=2)
    assert again.ids == {"clip-0", "clip-1", "clip-2"}
    again.close()
    data = open_parquet([(tmp_path, 1)], SPEC, needs_latents=True)
    ids = [sample.info["id"] for chunk in range(len(data.chunk_sizes)) for sample in data.read_chunk(chunk)]
    assert ids == ["clip-0", "clip-1", "clip-2"]


def test_a_kill_between_a_file_and_clearing_its_rows_duplicates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = ParquetClipWriter(tmp_path, T2V_SCHEMA, rows_per_file=2)
    killed.append(reference_row(0))
    monkeypatch.setattr(killed, "_unstage", lambda path: None)
    killed.append(reference_row(1))
    assert len(list((tmp_path / ".staged").iterdir())) == 2
    again = ParquetClipWriter(tmp_path, T2V_SCHEMA, rows_per_file=2)
    again.close()
    assert [path.name for path in tmp_path.rglob("*.parquet")] == ["data_chunk_0.parquet"]


def test_keep_only_rewrites_and_removes(tmp_path: Path) -> None:
    writer = ParquetClipWriter(tmp_path, T2V_SCHEMA, rows_per_file=2)
    for number in range(5):
        writer.append(reference_row(number))
    assert writer.names_outside({"clip-1", "clip-4"}) == ["0.mp4", "2.mp4", "3.mp4"]
    writer.keep_only({"clip-1", "clip-4"})
    assert writer.names_outside({"clip-1"}) == ["4.mp4"]
    assert writer.ids == {"clip-1", "clip-4"}
    assert ParquetClipWriter(tmp_path, T2V_SCHEMA).names_outside(set()) == ["1.mp4", "4.mp4"]
    writer.append(reference_row(9))
    writer.close()
    names = sorted(path.name for path in tmp_path.rglob("*.parquet"))
    tables = [pq.ParquetFile(tmp_path / "worker_0" / name).read() for name in names]
    assert [table["id"].to_pylist() for table in tables] == [["clip-1"], ["clip-4", "clip-9"]]
    assert tables[0].schema.equals(T2V_SCHEMA)


def test_a_full_disk_leaves_only_whole_files(tmp_path: Path) -> None:
    writer = ParquetClipWriter(tmp_path, T2V_SCHEMA, rows_per_file=2)
    writer.append(reference_row(0))
    big = np.random.default_rng(0).standard_normal((4, 3, 64, 64)).astype(np.float32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # a write beyond 20 kB fails, as on a full disk
    try:
        with pytest.raises(FvdError, match="cannot write .*: " + os.strerror(errno.EFBIG)) as caught:
            writer.append(reference_row(1, vae_latent_bytes=big.tobytes(), vae_latent_shape=list(big.shape)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "Make room" in caught.value.cure
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["00000000.row"]
    writer.append(reference_row(1))
    writer.close()
    assert open_parquet([(tmp_path, 1)], SPEC, needs_latents=True).chunk_sizes == [2]
