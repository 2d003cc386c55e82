"""The layouts of clips and captions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fvd.data.captions import list_clips, list_prompts
from fvd.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def found(folder: Path) -> list[tuple[str, str | None, str]]:
    return [(clip.name, clip.caption, clip.problem) for clip in list_clips(folder).clips]


def test_sidecars(tmp_path: Path) -> None:
    touch(tmp_path, "b.MP4", "a.mov", "deep/c.webm", "d.mkv", "e.mp4", ".hidden/x.mp4", "notes.md")
    (tmp_path / "a.txt").write_text("\ufeff a ball \n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    (tmp_path / "deep/c.txt").write_text("  \n", encoding="utf-8")
    (tmp_path / "e.txt").write_bytes("caf\xe9".encode("latin-1"))
    assert found(tmp_path) == [
        ("a.mov", "a ball", ""),
        ("b.MP4", "one\n\ntwo", ""),
        ("d.mkv", None, ""),
        ("deep/c.webm", "", ""),
        ("e.mp4", None, f"{tmp_path / 'e.txt'} is not UTF-8 (byte 3)"),
    ]
    listing = list_clips(tmp_path)
    assert listing.layout == "videos with a .txt of the same name"
    assert listing.clips[1].notes == ("caption of 2 lines taken as one",)


@pytest.mark.parametrize("path_key", ["file_name", "video", "path"])
@pytest.mark.parametrize("caption_key", ["caption", "prompt", "text"])
def test_metadata_jsonl_and_csv(tmp_path: Path, path_key: str, caption_key: str) -> None:
    touch(tmp_path, "a.mp4", "videos/b.mp4", "c.mp4")
    lines = [
        {path_key: "a.mp4", caption_key: "x, y"},
        {path_key: "b.mp4", caption_key: ""},
        {path_key: "lost.mp4", caption_key: "z"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8")
    expected = [("a.mp4", "x, y", ""), ("b.mp4", "", ""), ("lost.mp4", "z", "")]
    assert found(tmp_path) == [*expected, ("c.mp4", None, "not listed in metadata.jsonl")]
    assert [clip.path for clip in list_clips(tmp_path).clips[:3]] == [
        tmp_path / "a.mp4",
        tmp_path / "videos/b.mp4",
        tmp_path / "lost.mp4",
    ]
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text(f'{caption_key},{path_key}\n"x, y",a.mp4\n,b.mp4\nz,lost.mp4\n', encoding="utf-8")
    assert found(tmp_path) == [*expected, ("c.mp4", None, "not listed in metadata.csv")]
    assert list_clips(tmp_path).layout == f"metadata.csv (columns {path_key}, {caption_key})"


def test_videos2caption_json(tmp_path: Path) -> None:
    touch(tmp_path, "videos/a.mp4", "b.mp4", "videos/c.mp4")
    entries = [{"path": "a.mp4", "cap": ["one", "two"]}, {"path": "b.mp4", "cap": "three"}, {"path": "c.mp4", "cap": []}]
    (tmp_path / "videos2caption.json").write_text(json.dumps(entries), encoding="utf-8")
    assert found(tmp_path) == [("a.mp4", "one", ""), ("b.mp4", "three", ""), ("c.mp4", None, "")]
    clips = list_clips(tmp_path).clips
    assert [clip.path for clip in clips] == [tmp_path / "videos/a.mp4", tmp_path / "b.mp4", tmp_path / "videos/c.mp4"]
    assert clips[0].notes == ("first of 2 captions used",)


def test_a_metadata_file_named_on_the_command_line(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "mine.jsonl").write_text('{"video": "a.mp4", "prompt": "x"}', encoding="utf-8")
    assert found(tmp_path / "mine.jsonl") == [("a.mp4", "x", "")]


def test_entries_that_make_no_sense_are_dropped_one_by_one(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    lines = ['{"video": "a.mp4", "prompt": 5}', "", '{"prompt": "x"}', '{"video": 7, "prompt": "y"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert found(tmp_path) == [
        ("a.mp4", None, "the caption is not text but int"),
        ("metadata.jsonl:3", "x", "metadata.jsonl:3 has no file_name, video, path or video_path; it has: prompt"),
        ("metadata.jsonl:4", "y", "no video"),
        ("b.mp4", None, "not listed in metadata.jsonl"),
    ]


def test_each_line_may_have_columns_of_its_own(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4")
    lines = [
        {"file_name": "a.mp4", "caption": "one"},
        {"video": "b.mp4", "prompt": "two"},
        {"path": "c.mp4", "caption": None, "text": "three", "file_name": ""},  # what is filled counts
        {"file_name": "d.mp4", "captoin": "four"},
        {"video_path": "e.mp4", "cap": "five"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    assert found(tmp_path) == [
        ("a.mp4", "one", ""),
        ("b.mp4", "two", ""),
        ("c.mp4", "three", ""),
        (
            "d.mp4",
            None,
            "metadata.jsonl:4 has no caption, prompt, text or cap (did you mean 'caption'?); it has: file_name, captoin",
        ),
        ("e.mp4", "five", ""),
    ]
    layout = "metadata.jsonl (columns file_name/video/path/video_path, caption/prompt/text/cap)"
    assert list_clips(tmp_path).layout == layout
    assert [clip.caption for clip in list_prompts(tmp_path / "metadata.jsonl").clips] == ["one", "two", "three", None, "five"]


def test_lines_of_a_csv_with_captions_of_several_lines(tmp_path: Path) -> None:
    text = 'file_name,caption\na.mp4,"one\ntwo\nthree"\n,x\n\n,"y\nz"\n'
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8")
    assert [name for name, _, _ in found(tmp_path)] == ["a.mp4", "metadata.csv:5", "metadata.csv:7"]


def test_every_bad_line_is_reported(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"video": "a.mp4"\n{"video": "b.mp4", "text": "x"}\n[1]\n', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        list_clips(tmp_path)
    assert f"{tmp_path / 'metadata.jsonl'}:1: " in caught.value.message
    assert "metadata.jsonl:3: not an object" in caught.value.message


def test_columns_that_are_missing_are_named(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,captions\na.mp4,x\n", encoding="utf-8")
    with pytest.raises(DataError, match="no entry has a column caption, prompt, text or cap") as caught:
        list_clips(tmp_path)
    assert (
        "metadata.csv:2 has no caption, prompt, text or cap (did you mean 'caption'?); it has: file_name, captions"
        in caught.value.message
    )
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.mp4,x, y\nb.mp4,x\nc.mp4,x,y\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"metadata.csv:2: more cells") as caught:
        list_clips(tmp_path)
    assert "metadata.csv:4: more cells" in caught.value.message
    assert "metadata.csv:3" not in caught.value.message
    (tmp_path / "metadata.csv").write_text(f"file_name,caption\na.mp4,{'x' * 200_000}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"metadata.csv:2: field larger than"):
        list_clips(tmp_path)


def test_folders_without_videos(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "b.png")
    with pytest.raises(DataError, match="no videos in") as caught:
        list_clips(tmp_path)
    assert "videos2caption.json" in caught.value.cure
    assert ".mp4" in caught.value.cure
    with pytest.raises(DataError, match="does not exist"):
        list_clips(tmp_path / "absent")
    with pytest.raises(DataError, match="not a folder of clips"):
        list_clips(tmp_path / "b.png")


def test_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a ball\n\n  a cube \n", encoding="utf-8")
    clips = list_prompts(tmp_path / "p.txt").clips
    assert [(clip.name, clip.caption, clip.path) for clip in clips] == [
        ("p.txt:1", "a ball", None),
        ("p.txt:3", "a cube", None),
    ]
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n{"prompt": null}\n', encoding="utf-8")
    assert [clip.caption for clip in list_prompts(tmp_path / "p.jsonl").clips] == ["x", None]
    (tmp_path / "p.csv").write_text("id,caption\n1,y\n", encoding="utf-8")
    assert [clip.caption for clip in list_prompts(tmp_path / "p.csv").clips] == ["y"]
    touch(tmp_path, "clips/a.mp4")
    (tmp_path / "clips/a.txt").write_text("z", encoding="utf-8")
    assert [clip.caption for clip in list_prompts(tmp_path / "clips").clips] == ["z"]
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds no prompts"):
        list_prompts(tmp_path / "empty.txt")
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="no videos") as caught:
        list_prompts(tmp_path / "void")
    assert "--text-only" in caught.value.cure
