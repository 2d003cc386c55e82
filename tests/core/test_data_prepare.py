"""`fvd data prepare` with encoders in pure torch and real video files."""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import Field
from torch import Tensor

from fvd.cli.data import configure
from fvd.config.models import PipelineConfig
from fvd.data.loader import Loader
from fvd.data.parquet import T2V_SCHEMA, TEXT_ONLY_SCHEMA, open_parquet
from fvd.data.prepare import PrepareRequest, prepare
from fvd.data.spec import DataSpec, FieldSpec, VideoGeometry
from fvd.data.video import read_clip, write_video
from fvd.errors import ConfigError, DataError, FvdError, PluginError
from fvd.families import ClipPlan, Encoders

PLAN = ClipPlan(fps=16.0, geometry=VideoGeometry(num_frames=5, height=32, width=32))


class PoolingEncoders(Encoders):
    """Latents: 8 x 8 means of the first of every 4 frames. Text: the code points."""

    def __init__(self, digest: str = "weights-1", *, delay: float = 0.0, poison: str = "") -> None:
        self._digest = digest
        self._delay = delay
        self._poison = poison
        self.videos = 0
        self.texts: list[str] = []

    @property
    def default_plan(self) -> ClipPlan:
        return PLAN

    @property
    def digest(self) -> str:
        return self._digest

    def check_geometry(self, geometry: VideoGeometry) -> None:
        if geometry.height % 16:
            raise FvdError(f"height {geometry.height} is no multiple of 16")

    def encode_video(self, video: Tensor) -> Tensor:
        assert video.shape[0] == 1, "one clip at a time"
        self.videos += 1
        time.sleep(self._delay)
        return torch.nn.functional.avg_pool3d(video[:, :, ::4], (1, 8, 8))

    def encode_text(self, captions: Sequence[str]) -> list[Tensor]:
        self.texts += captions
        scale = float("nan") if self._poison in captions else 1.0
        return [torch.tensor([[float(ord(letter))] * 2 for letter in caption]) * scale for caption in captions]


SPEC = DataSpec(
    fields=(
        FieldSpec(name="vae_latent", axes=("C", "T", "H", "W"), sizes={"C": 3}, source="latents"),
        FieldSpec(name="text_embedding", axes=("L", "D"), sizes={"D": 2}, source="text", ragged="L"),
    ),
    text_padding_length=16,
)


def add_clip(
    folder: Path, name: str, caption: str | None, *, seed: int = 0, frames: int = 8, size: int = 40, fps: float = 16
) -> None:
    colour = torch.rand(3, 1, 1, 1, generator=torch.Generator().manual_seed(seed))
    write_video(folder / name, colour * torch.linspace(0.3, 1, frames)[None, :, None, None].expand(3, frames, size, size), fps)
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    for index, name in enumerate(["a.mp4", "b.mp4", "c.mp4"]):
        add_clip(folder, name, f"clip {name[0]}", seed=index)
    return folder


def run(
    clips: Path, out: Path, encoders: PoolingEncoders | None = None, plan: ClipPlan | None = PLAN, **options: object
) -> dict[str, str]:
    """Prepare; the reason (or "") by clip."""
    request = PrepareRequest(clips=clips, out=out, family="fake", model="models/fake", plan=plan, **options)  # type: ignore[arg-type]
    return {verdict.clip.name: verdict.reason for verdict in prepare(request, encoders or PoolingEncoders())}


def rows(out: Path) -> list[dict[str, object]]:
    return [row for path in sorted(out.rglob("*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- what is written --------------------------------------------------------------------------------------------------
def test_rows_are_the_encodings_in_the_reference_schema(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    run(clips, out)
    assert files(out) == ["clips.csv", "fvd-data.json", "worker_0/data_chunk_0.parquet"]
    assert pq.ParquetFile(out / "worker_0/data_chunk_0.parquet").schema_arrow.equals(T2V_SCHEMA)
    encoders = PoolingEncoders()
    for name, row in zip(["a.mp4", "b.mp4", "c.mp4"], rows(out), strict=True):
        latent = encoders.encode_video(read_clip(clips / name, PLAN)[None])[0].numpy()
        assert row["vae_latent_bytes"] == latent.tobytes()
        assert (row["vae_latent_shape"], row["vae_latent_dtype"]) == ([3, 2, 4, 4], "float32")
        text = np.frombuffer(row["text_embedding_bytes"], "float32").reshape(row["text_embedding_shape"])  # type: ignore[call-overload]
        np.testing.assert_array_equal(text[:, 0], [ord(letter) for letter in f"clip {name[0]}"])
        assert (row["file_name"], row["caption"], row["media_type"]) == (name, f"clip {name[0]}", "video")
        assert (row["width"], row["height"], row["num_frames"]) == (32, 32, 2)  # latent frames
        assert (row["duration_sec"], row["fps"]) == (5 / 16, 16.0)


def test_what_was_prepared_trains(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "data", rows_per_file=2)
    dataset = open_parquet([(tmp_path / "data", 1)], SPEC, needs_latents=True)
    batch = next(iter(Loader(dataset, SPEC, batch_size=3, seed=0)))
    assert batch.tensors["vae_latent"].shape == (3, 3, 2, 4, 4)
    assert batch.tensors["text_embedding_mask"].sum(1).tolist() == [6, 6, 6]
    assert {info["caption"] for info in batch.info} == {"clip a", "clip b", "clip c"}


def test_prompts_alone(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    (tmp_path / "p.txt").write_text("a ball\na cube\na ball\n", encoding="utf-8")
    encoders = PoolingEncoders()
    assert run(tmp_path / "p.txt", out, encoders, plan=None) == {
        "p.txt:1": "",
        "p.txt:2": "",
        "p.txt:3": "duplicate of p.txt:1",
    }
    assert encoders.videos == 0
    assert encoders.texts == ["a ball", "a cube"]
    assert pq.ParquetFile(out / "worker_0/data_chunk_0.parquet").schema_arrow.equals(TEXT_ONLY_SCHEMA)
    assert open_parquet([(out, 1)], SPEC, needs_latents=False).chunk_sizes == [2]
    (clips / "a.mp4").write_bytes(b"unread")
    assert set(run(clips, tmp_path / "other", plan=None).values()) == {""}


# --- verdicts ---------------------------------------------------------------------------------------------------------
def test_every_clip_gets_a_verdict(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_clip(clips, "copy.mp4", "clip a", seed=0)
    add_clip(clips, "same-video-other-caption.mp4", "another", seed=0)
    add_clip(clips, "empty.mp4", " \n")
    add_clip(clips, "none.mp4", None)
    add_clip(clips, "short.mp4", "x", frames=4)
    add_clip(clips, "slow.mp4", "x", frames=6, fps=8)
    add_clip(clips, "small.mp4", "x", size=16)
    add_clip(clips, "cut.mp4", "x", frames=40)
    (clips / "cut.mp4").write_bytes((clips / "cut.mp4").read_bytes()[:-300])
    reasons = run(clips, tmp_path / "data")
    assert reasons == {
        "a.mp4": "",
        "b.mp4": "",
        "c.mp4": "",
        "copy.mp4": "duplicate of a.mp4",
        "cut.mp4": "cannot be opened: truncated, or not a video",
        "empty.mp4": "empty caption",
        "none.mp4": "no caption",
        "same-video-other-caption.mp4": "",
        "short.mp4": "too short: has 4 frames at 16 fps, needs 5",
        "slow.mp4": "",
        "small.mp4": "",
    }
    with (tmp_path / "data/clips.csv").open(newline="", encoding="utf-8") as file:
        table = {row["clip"]: row for row in csv.DictReader(file)}
    assert {name: row["reason"] for name, row in table.items()} == reasons
    assert table["slow.mp4"]["notes"] == "8 fps: frames repeat"
    assert table["small.mp4"]["notes"] == "upscaled 2x from 16x16"
    assert table["a.mp4"]["frames"] == "8"
    assert table["a.mp4"]["verdict"] == "kept"
    printed = capsys.readouterr()
    assert "layout: videos with a .txt of the same name; 11 clips" in printed.err
    assert "6 kept, 5 dropped; 6 encoded now" in printed.err
    assert "encoding 6/6" in printed.err
    lines = printed.out.splitlines()  # the table, and nothing else
    assert lines[0].split() == ["clip", "verdict", "why"]
    assert [line.split()[0] for line in lines[1:]] == list(reasons)
    assert json.loads((tmp_path / "data/fvd-data.json").read_text())["counts"] == {"kept": 6, "dropped": 5}


def test_missing_files_of_metadata(clips: Path, tmp_path: Path) -> None:
    lines = [{"video": "a.mp4", "prompt": "x"}, {"video": "gone.mp4", "prompt": "y"}, {"video": "a.mp4", "prompt": "x"}]
    (clips / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    request = PrepareRequest(clips=clips, out=tmp_path / "data", family="fake", model="m", plan=PLAN)
    reasons = [verdict.reason for verdict in prepare(request, PoolingEncoders())]
    assert reasons == ["", "file missing", "duplicate of a.mp4", "not listed in metadata.jsonl", "not listed in metadata.jsonl"]


def test_damage_that_shows_only_in_decoding(clips: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    write_video(clips / "d.mp4", torch.rand(3, 40, 64, 64, generator=generator), 16)
    (clips / "d.txt").write_text("x", encoding="utf-8")
    data = bytearray((clips / "d.mp4").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 30_000] = bytes(30_000)
    (clips / "d.mp4").write_bytes(data)
    plan = ClipPlan(fps=16.0, geometry=VideoGeometry(num_frames=40, height=32, width=32))
    for name in "abc":
        add_clip(clips, f"{name}.mp4", name, frames=40, seed=ord(name))
    reasons = run(clips, tmp_path / "data", plan=plan)
    assert reasons["d.mp4"].startswith("cannot be decoded: ")
    assert reasons["a.mp4"] == ""
    assert len(rows(tmp_path / "data")) == 3


def test_encodings_that_are_not_finite_are_dropped(clips: Path, tmp_path: Path) -> None:
    reasons = run(clips, tmp_path / "data", PoolingEncoders(poison="clip b"))
    assert reasons["b.mp4"] == "cannot be used: its text embedding holds NaN or infinite values"
    assert [row["file_name"] for row in rows(tmp_path / "data")] == ["a.mp4", "c.mp4"]


def test_strict_fails_before_anything_is_encoded(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_clip(clips, "none.mp4", None)
    encoders = PoolingEncoders()
    with pytest.raises(DataError, match="1 of 4 clips would be dropped"):
        run(clips, tmp_path / "data", encoders, strict=True)
    assert encoders.videos == 0
    assert not (tmp_path / "data").exists()
    assert "none.mp4  dropped  no caption" in capsys.readouterr().out


def test_no_clip_that_can_be_used_leaves_nothing_behind(clips: Path, tmp_path: Path) -> None:
    long = ClipPlan(fps=16.0, geometry=VideoGeometry(num_frames=9, height=32, width=32))
    with pytest.raises(DataError, match="none of the 3 clips"):
        run(clips, tmp_path / "data", plan=long)
    assert not (tmp_path / "data").exists()

    class Blind(PoolingEncoders):
        def encode_video(self, video: Tensor) -> Tensor:
            return super().encode_video(video) * float("nan")

    with pytest.raises(DataError, match="none of the 3 clips"):
        run(clips, tmp_path / "data", Blind())
    assert not (tmp_path / "data").exists()


def test_sizes_that_the_model_cannot_make(clips: Path, tmp_path: Path) -> None:
    plan = ClipPlan(fps=16.0, geometry=VideoGeometry(num_frames=5, height=33, width=32))
    with pytest.raises(FvdError, match="height 33"):
        run(clips, tmp_path / "data", plan=plan)


# --- a family that does not keep its contract --------------------------------------------------------------------------
VIDEO_BREACHES: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "no batch axis": (lambda latents: latents[0], r"a tensor \[3, 2, 4, 4\], float32, on cpu"),
    "two for one": (lambda latents: latents.repeat(2, 1, 1, 1, 1), r"a tensor \[2, 3, 2, 4, 4\], float32"),
    "half precision": (lambda latents: latents.bfloat16(), r"a tensor \[1, 3, 2, 4, 4\], bfloat16"),
    "another device": (lambda latents: latents.to("meta"), r"a tensor \[1, 3, 2, 4, 4\], float32, on meta"),
    "numpy": (lambda latents: latents.numpy(), r"a numpy\.ndarray"),
    "a list": (list, r"a builtins\.list"),
    "nothing": (lambda latents: None, r"a builtins\.NoneType"),
    "empty": (lambda latents: latents[:, :, :0], r"a tensor \[1, 3, 0, 4, 4\]"),
}
TEXT_BREACHES: dict[str, tuple[Callable[[list[Tensor]], object], str]] = {
    "a padded tensor": (torch.stack, r"it returned a tensor \[1, 6, 2\], float32, on cpu"),
    "with a batch axis": (lambda texts: [texts[0][None]], r"the list holds a tensor \[1, 6, 2\]"),
    "double precision": (lambda texts: [texts[0].double()], r"the list holds a tensor \[6, 2\], float64"),
    "numpy": (lambda texts: [texts[0].numpy()], r"the list holds a numpy\.ndarray"),
    "no token": (lambda texts: [texts[0][:0]], r"the list holds a tensor \[0, 2\]"),
    "two for one": (lambda texts: texts * 2, r"the list holds a tensor .*, a tensor "),
    "none for one": (lambda texts: [], "the list holds nothing"),
    "nothing": (lambda texts: None, r"it returned a builtins\.NoneType"),
}


def blamed(caught: pytest.ExceptionInfo[PluginError], method: str) -> bool:
    return f"the encoders of the family fake ({__name__}." in caught.value.message and (
        f"break their contract: {method} must return" in caught.value.message
    )


@pytest.mark.parametrize(("breach", "found"), VIDEO_BREACHES.values(), ids=VIDEO_BREACHES)
def test_latents_that_are_not_as_promised(clips: Path, tmp_path: Path, breach: Callable[[Tensor], Tensor], found: str) -> None:
    class Broken(PoolingEncoders):
        def encode_video(self, video: Tensor) -> Tensor:
            return breach(super().encode_video(video))

    with pytest.raises(PluginError, match=f"returned {found}") as caught:
        run(clips, tmp_path / "data", Broken())
    assert blamed(caught, "encode_video")
    assert rows(tmp_path / "data") == []


@pytest.mark.parametrize(("breach", "found"), TEXT_BREACHES.values(), ids=TEXT_BREACHES)
def test_embeddings_that_are_not_as_promised(
    clips: Path, tmp_path: Path, breach: Callable[[list[Tensor]], list[Tensor]], found: str
) -> None:
    class Broken(PoolingEncoders):
        def encode_text(self, captions: Sequence[str]) -> list[Tensor]:
            return breach(super().encode_text(captions))

    with pytest.raises(PluginError, match=found) as caught:
        run(clips, tmp_path / "data", Broken())
    assert blamed(caught, "encode_text")


# --- running again ----------------------------------------------------------------------------------------------------
def test_a_second_run_encodes_nothing(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "data")
    before = (tmp_path / "data/worker_0/data_chunk_0.parquet").read_bytes()
    again = PoolingEncoders()
    run(clips, tmp_path / "data", again)
    assert again.videos == 0
    assert again.texts == []
    assert (tmp_path / "data/worker_0/data_chunk_0.parquet").read_bytes() == before


def test_only_what_changed_is_encoded_again(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "data")
    (clips / "a.txt").write_text("new words", encoding="utf-8")
    add_clip(clips, "b.mp4", "clip b", seed=77)
    (clips / "c.mp4").rename(clips / "moved.mp4")
    (clips / "c.txt").rename(clips / "moved.txt")
    add_clip(clips, "d.mp4", "clip d", seed=5)
    again = PoolingEncoders()
    run(clips, tmp_path / "data", again)
    assert sorted(again.texts) == ["clip b", "clip d", "new words"]
    assert sorted(str(row["caption"]) for row in rows(tmp_path / "data")) == ["clip b", "clip c", "clip d", "new words"]
    (clips / "d.mp4").unlink()
    again = PoolingEncoders()
    run(clips, tmp_path / "data", again)
    assert again.videos == 0
    assert sorted(str(row["caption"]) for row in rows(tmp_path / "data")) == ["clip b", "clip c", "new words"]


@pytest.mark.parametrize(
    ("plan", "digest", "difference"),
    [
        (
            ClipPlan(fps=8.0, geometry=VideoGeometry(num_frames=4, height=32, width=16)),
            "weights-1",
            "num_frames: 5 there, 4 now",
        ),
        (PLAN, "weights-2", r"encoders \(--model, --set\): models/fake \(weights-1\) there, models/fake \(weights-2\) now"),
        (None, "weights-1", "schema: t2v there, text_only now"),
    ],
)
def test_other_settings_in_the_same_folder(
    clips: Path, tmp_path: Path, plan: ClipPlan | None, digest: str, difference: str
) -> None:
    out = tmp_path / "data"
    run(clips, out)
    before = {name: (out / name).read_bytes() for name in files(out)}
    with pytest.raises(DataError, match=difference) as caught:
        run(clips, out, PoolingEncoders(digest), plan=plan)
    assert "--overwrite" in caught.value.cure
    assert {name: (out / name).read_bytes() for name in files(out)} == before
    encoders = PoolingEncoders(digest)
    run(clips, out, encoders, plan=plan, overwrite=True)
    assert len(encoders.texts) == 3
    assert len(rows(out)) == 3


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files(folder)}


def test_other_clips_in_the_same_folder_delete_nothing(clips: Path, tmp_path: Path) -> None:
    """One wrong argument must not cost hours of encoding."""
    out, other = tmp_path / "data", tmp_path / "other"
    add_clip(other, "z.mp4", "another", seed=9)
    run(clips, out)
    before = content(out)
    encoders = PoolingEncoders()
    with pytest.raises(DataError) as caught:
        run(other, out, encoders)
    assert f"was prepared from {clips}, and not from {other}" in caught.value.message
    assert "3 of its rows would be deleted (a.mp4, b.mp4, c.mp4)" in caught.value.message
    assert "--out" in caught.value.cure
    assert "--overwrite" in caught.value.cure
    assert encoders.videos == 0
    assert content(out) == before
    run(other, out, overwrite=True)
    assert [row["file_name"] for row in rows(out)] == ["z.mp4"]
    assert json.loads((out / "fvd-data.json").read_text())["source"] == str(other)


def test_prompts_of_another_file_delete_nothing(tmp_path: Path) -> None:
    for name, text in (("p.txt", "a ball\n"), ("q.txt", "a cube\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    run(tmp_path / "p.txt", tmp_path / "data", plan=None)
    with pytest.raises(DataError, match=r"prepared from .*p\.txt, and not from .*q\.txt: 1 of its rows .*\(a ball\)"):
        run(tmp_path / "q.txt", tmp_path / "data", plan=None)


def test_other_clips_after_a_kill_delete_nothing(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are not in a parquet file yet count too."""
    out, other = tmp_path / "data", tmp_path / "other"
    add_clip(other, "z.mp4", "another", seed=9)

    class Interrupted(PoolingEncoders):
        def encode_video(self, video: Tensor) -> Tensor:
            if self.videos == 2:
                raise KeyboardInterrupt
            return super().encode_video(video)

    with pytest.raises(KeyboardInterrupt):
        run(clips, out, Interrupted())
    assert not list(out.rglob("*.parquet"))
    with pytest.raises(DataError, match=r"2 of its rows would be deleted \(a.mp4, b.mp4\)"):
        run(other, out)
    encoders = PoolingEncoders()
    run(clips, out, encoders)
    assert encoders.videos == 1


def test_clips_that_moved_are_not_encoded_again(clips: Path, tmp_path: Path) -> None:
    out, moved = tmp_path / "data", tmp_path / "moved"
    run(clips, out)
    clips.rename(moved)
    add_clip(moved, "d.mp4", "clip d", seed=5)
    encoders = PoolingEncoders()
    run(moved, out, encoders)
    assert encoders.texts == ["clip d"]
    assert json.loads((out / "fvd-data.json").read_text())["source"] == str(moved)


def test_a_folder_has_one_name(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the same clips are named, they are the same clips, and may lose some."""
    run(clips, tmp_path / "data")
    (clips / "c.mp4").unlink()
    (tmp_path / "link").symlink_to(clips)
    run(tmp_path / "link", tmp_path / "data")
    (clips / "b.mp4").unlink()
    monkeypatch.chdir(tmp_path)
    run(Path("clips"), tmp_path / "data")
    assert [row["file_name"] for row in rows(tmp_path / "data")] == ["a.mp4"]


def test_rows_that_go_are_named(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_clip(clips, "d.mp4", "clip d", seed=5)
    run(clips, tmp_path / "data")
    (clips / "a.mp4").unlink()
    (clips / "b.txt").write_text("other words", encoding="utf-8")
    (clips / "c.txt").unlink()
    capsys.readouterr()
    run(clips, tmp_path / "data")
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("old row removed")] == [
        f"old row removed: a.mp4 (no longer in {clips})",
        "old row removed: b.mp4 (changed since)",
        "old row removed: c.mp4 (dropped now: no caption)",
    ]
    assert "2 kept, 1 dropped; 1 encoded now, 3 old rows removed" in said


def test_two_processes_in_one_folder(clips: Path, tmp_path: Path) -> None:
    """The second is refused at once and disturbs nothing; afterwards there is no trace of the lock."""
    out = tmp_path / "data"

    class Meddled(PoolingEncoders):
        def encode_video(self, video: Tensor) -> Tensor:
            before, second = content(out), PoolingEncoders()
            for overwrite in (False, True):
                with pytest.raises(DataError, match=f"another `fvd data prepare` is at work in {out}"):
                    run(clips, out, second, overwrite=overwrite)
            assert second.videos == 0
            assert content(out) == before
            return super().encode_video(video)

    run(clips, out, Meddled())
    assert files(out) == ["clips.csv", "fvd-data.json", "worker_0/data_chunk_0.parquet"]
    assert len(rows(out)) == 3


def test_a_lock_that_a_kill_left_behind_holds_nobody(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/.lock").touch()
    (tmp_path / "data/.fvd-data.json.tmp").write_bytes(b"{")
    run(clips, tmp_path / "data")
    assert files(tmp_path / "data") == ["clips.csv", "fvd-data.json", "worker_0/data_chunk_0.parquet"]


def test_a_folder_that_cannot_be_made(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write into"):
        run(clips, tmp_path / "file" / "data")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": "fvd-data/1"}', '{"format": "fvd-data/2", "source": "x"}'])
def test_settings_that_cannot_be_read(clips: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/fvd-data.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"fvd-data\.json cannot be read|prepared in format fvd-data/1"):
        run(clips, tmp_path / "data")


def test_the_table_is_there_while_clips_are_encoded(clips: Path, tmp_path: Path) -> None:
    add_clip(clips, "none.mp4", None)

    class Interrupted(PoolingEncoders):
        def encode_video(self, video: Tensor) -> Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(clips, tmp_path / "data", Interrupted())
    with (tmp_path / "data/clips.csv").open(newline="", encoding="utf-8") as file:
        table = {row["clip"]: row["reason"] for row in csv.DictReader(file)}
    assert table == {"a.mp4": "", "b.mp4": "", "c.mp4": "", "none.mp4": "no caption"}
    run(clips, tmp_path / "data", PoolingEncoders(poison="clip b"))
    with (tmp_path / "data/clips.csv").open(newline="", encoding="utf-8") as file:
        table = {row["clip"]: row["reason"] for row in csv.DictReader(file)}
    assert table["b.mp4"] == "cannot be used: its text embedding holds NaN or infinite values"


def test_overwrite_starts_anew(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "data")
    again = PoolingEncoders()
    run(clips, tmp_path / "data", again, overwrite=True)
    assert again.videos == 3
    assert len(rows(tmp_path / "data")) == 3


def test_a_model_that_moved_is_the_same_model(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "data")
    encoders = PoolingEncoders()
    request = PrepareRequest(clips=clips, out=tmp_path / "data", family="fake", model="elsewhere/fake", plan=PLAN)
    prepare(request, encoders)
    assert encoders.videos == 0


def test_somebody_elses_folder_is_left_alone(clips: Path, tmp_path: Path) -> None:
    for overwrite in (False, True):
        with pytest.raises(DataError, match="not made by `fvd data prepare`"):
            run(clips, clips, overwrite=overwrite)
    assert len(files(clips)) == 6
    with pytest.raises(DataError, match="is a file"):
        run(clips, clips / "a.mp4")


KILLED_RUN = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("helpers", sys.argv[1])
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)
helpers.run(Path(sys.argv[2]), Path(sys.argv[3]), helpers.PoolingEncoders(delay=0.15), rows_per_file=2)
"""


def test_after_sigkill_nothing_is_encoded_twice(tmp_path: Path) -> None:
    clips, out = tmp_path / "clips", tmp_path / "data"
    for index in range(8):
        add_clip(clips, f"{index}.mp4", f"clip {index}", seed=index)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_RUN, __file__, str(clips), str(out)],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while len(list(out.rglob("*.parquet"))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(DataError, match="not complete"):
        open_parquet([(out, 1)], SPEC, needs_latents=True)

    encoders = PoolingEncoders()
    run(clips, out, encoders, rows_per_file=2)
    assert 0 < encoders.videos <= 4
    assert [row["caption"] for row in rows(out)] == [f"clip {index}" for index in range(8)]
    assert open_parquet([(out, 1)], SPEC, needs_latents=True).chunk_sizes == [2, 2, 2, 2]


def test_a_full_disk_leaves_a_folder_that_can_be_continued(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, 0

    def full_after_two_rows(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 4:  # the settings, the table and two rows are written
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("os.fsync", full_after_two_rows)
    with pytest.raises(FvdError, match="No space left on device"):
        run(clips, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.tmp"))
    monkeypatch.undo()
    encoders = PoolingEncoders()
    run(clips, tmp_path / "data", encoders)
    assert encoders.videos == 1
    assert len(rows(tmp_path / "data")) == 3


# --- the command ------------------------------------------------------------------------------------------------------
class FakeFamily:
    def __init__(self, context: object) -> None:
        self.context = context

    def build_encoders(self) -> PoolingEncoders:
        return PoolingEncoders()


class FakePlugins:
    def load(self, kind: str, name: str) -> type[FakeFamily]:
        assert (kind, name) == ("family", "fake")
        return FakeFamily

    def load_config(self, kind: str, name: str) -> type[PipelineConfig]:
        return PipelineConfig


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="fvd data")
    configure(parser)
    args = parser.parse_args(["prepare", "--family", "fake", "--model", "m", "--device", "cpu", *arguments])
    args.plugins = FakePlugins()
    status: int = args.execute(args)
    return status


def test_the_command_overrides_parts_of_the_plan(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    assert (
        command(str(clips), "--out", str(out), "--num-frames", "3", "--width", "48", "--fps", "8", "--rows-per-file", "1") == 0
    )
    settings = json.loads((out / "fvd-data.json").read_text())["settings"]
    assert {key: settings[key] for key in ("fps", "num_frames", "height", "width")} == {
        "fps": 8.0,
        "num_frames": 3,
        "height": 32,
        "width": 48,
    }
    assert len(list(out.rglob("*.parquet"))) == 3
    assert command(str(clips), "--out", str(tmp_path / "texts"), "--text-only") == 0
    assert "vae_latent_bytes" not in rows(tmp_path / "texts")[0]


@pytest.mark.parametrize("arguments", [["--fps", "0"], ["--num-frames", "-1"], ["--height", "x"], ["--fps", "inf"]])
def test_senseless_numbers_are_usage_errors(clips: Path, tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command(str(clips), "--out", str(tmp_path / "data"), *arguments)
    assert caught.value.code == 2


def test_an_unknown_device(clips: Path, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    configure(parser)
    line = ["prepare", str(clips), "--out", "x", "--family", "fake", "--model", "m", "--device", "gpu"]
    args = parser.parse_args(line)
    args.plugins = FakePlugins()
    with pytest.raises(FvdError, match="unknown device 'gpu'"):
        args.execute(args)


@pytest.mark.parametrize("device", ["cuda:99", "meta"])
def test_a_device_that_is_not_there(clips: Path, tmp_path: Path, device: str) -> None:
    with pytest.raises(FvdError, match=f"--device {device} cannot be used: ") as caught:
        command(str(clips), "--out", str(tmp_path / "data"), "--device", device)
    assert "This machine has: cpu" in caught.value.cure
    assert "Traceback" not in caught.value.message
    assert not (tmp_path / "data").exists()


# --- the family's settings ---------------------------------------------------------------------------------------------
class FakeConfig(PipelineConfig):
    max_tokens: Annotated[int, Field(gt=0)] = 7
    """How many."""
    words: tuple[str, ...] = ()


class NeedyConfig(FakeConfig):
    vocabulary: str
    """File of words."""


def configured(monkeypatch: pytest.MonkeyPatch, model: type[PipelineConfig], *overrides: str) -> PipelineConfig:
    """The config that the family gets."""
    seen: list[PipelineConfig] = []

    class Family(FakeFamily):
        def build_encoders(self) -> PoolingEncoders:
            seen.append(self.context.config)  # type: ignore[attr-defined]
            return super().build_encoders()

    monkeypatch.setattr(FakePlugins, "load", lambda self, kind, name: Family)
    monkeypatch.setattr(FakePlugins, "load_config", lambda self, kind, name: model)
    sets = [word for override in overrides for word in ("--set", override)]
    with pytest.raises(DataError, match="does not exist"):
        command("nowhere", "--out", "out-of-nothing", *sets)
    return seen[0]


def test_the_family_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured(monkeypatch, FakeConfig) == FakeConfig()
    config = configured(monkeypatch, NeedyConfig, "max_tokens=12", "vocabulary=a.txt", "words=[x, y]", "flow_shift=1e0")
    assert config == NeedyConfig(max_tokens=12, vocabulary="a.txt", words=("x", "y"), flow_shift=1.0)


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["max_tokns=3"], ["--set max_tokns=3: error: max_tokns: unknown key (did you mean 'max_tokens'?)"]),
        (["xyz=3"], ["xyz: unknown key", "Keys: flow_shift, sampler_kind, negative_prompt, max_tokens, words"]),
        (
            ["max_tokens=0", "flow_shift=high"],
            [
                "--set max_tokens=0: error: max_tokens: Input should be greater than 0, got 0\n    max_tokens: How many.",
                "--set flow_shift=high: error: flow_shift: Input should be a valid number",
            ],
        ),
        (["max_tokens"], ["--set max_tokens: error: must look like"]),
        (["max_tokens=[1"], ["max_tokens: the value is not valid YAML"]),
        (["components_path=x"], ["components_path: is what --model says here"]),
    ],
)
def test_settings_that_the_family_does_not_take(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], messages: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(monkeypatch, FakeConfig, *overrides)
    for message in messages:
        assert message in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_settings_that_the_family_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(monkeypatch, NeedyConfig, "max_tokens=5")
    expected = "--family fake: error: vocabulary: this family needs it: --set vocabulary=VALUE\n    vocabulary: File of words."
    assert str(caught.value) == expected


def test_the_command_module_is_light() -> None:
    code = "import sys, fvd.cli.data\nassert not {'torch', 'av', 'pyarrow', 'numpy', 'rich', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
