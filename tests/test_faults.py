"""Bad input: a clear error, exit status 1, nothing half-written, never a traceback."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fvd.cli.main import main


def fails(capfd, *arguments: str) -> str:
    """Run `fvd`, which must end with status 1; returns what it said."""
    capfd.readouterr()
    assert main(list(arguments)) == 1
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return out + err


# --- models ---
def test_a_model_folder_that_is_not_wan(tmp_path, write_run_file, capfd):
    (tmp_path / "sdxl").mkdir()
    (tmp_path / "sdxl/model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    run_file = write_run_file("finetune", output_dir=tmp_path / "out", roles={"student": {"path": str(tmp_path / "sdxl")}})
    for command in ("check", "run"):
        said = fails(capfd, command, str(run_file))
        assert "roles.student.path" in said
        assert "sdxl" in said
        assert "Wan" in said
    assert not (tmp_path / "out").exists()


def test_weights_that_are_torn(tmp_path, tiny_wan, write_run_file, capfd):
    model = tmp_path / "torn"
    shutil.copytree(tiny_wan, model)
    weights = model / "transformer/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    run_file = write_run_file("finetune", output_dir=tmp_path / "out", roles={"student": {"path": str(model)}})
    assert "torn" in fails(capfd, "run", str(run_file))
    assert not (tmp_path / "out/run.yaml").exists()


# --- clips ---
@pytest.fixture
def bad_clips(tmp_path, write_mp4) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    whole = write_mp4(folder / "whole.mp4")
    (folder / "truncated.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    write_mp4(folder / "mute.mp4", color=1)
    write_mp4(folder / "brief.mp4", frames=4, color=2)
    for name, caption in (("whole", "a square"), ("truncated", "a square"), ("mute", " \n"), ("brief", "a short one")):
        (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
    return folder


def test_bad_clips_are_dropped_with_the_reason(tmp_path, tiny_wan, bad_clips, capfd):
    out = tmp_path / "data"
    assert main(["data", "prepare", str(bad_clips), "--family", "wan", "--model", str(tiny_wan), "--out", str(out)]) == 0
    rows = {row.split(",")[0]: row for row in (out / "clips.csv").read_text().splitlines()}
    assert "kept" in rows["whole.mp4"]
    for name, reason in (("truncated.mp4", "truncated"), ("mute.mp4", "caption"), ("brief.mp4", "too short")):
        assert "dropped" in rows[name]
        assert reason in rows[name]
    assert "4 frames" in rows["brief.mp4"]
    assert "9" in rows["brief.mp4"]


def test_no_clip_left_is_an_error(tmp_path, tiny_wan, bad_clips, capfd):
    for name in ("whole.mp4", "whole.txt"):
        (bad_clips / name).unlink()
    out = tmp_path / "data"
    said = fails(capfd, "data", "prepare", str(bad_clips), "--family", "wan", "--model", str(tiny_wan), "--out", str(out))
    assert "truncated" in said
    assert not list(out.glob("**/*.parquet"))


def test_a_folder_without_videos(tmp_path, tiny_wan, capfd):
    (tmp_path / "empty").mkdir()
    arguments = ("--family", "wan", "--model", str(tiny_wan), "--out", str(tmp_path / "data"))
    assert ".mp4" in fails(capfd, "data", "prepare", str(tmp_path / "empty"), *arguments)
    assert "nowhere" in fails(capfd, "data", "prepare", str(tmp_path / "nowhere"), *arguments)
    assert not (tmp_path / "data").exists()


# --- parquet ---
def rewrite(source: Path, target: Path, change) -> Path:
    """A copy of prepared data with one thing changed, written with pyarrow alone."""
    (path,) = source.glob("**/*.parquet")
    target.mkdir()
    pq.write_table(change(pq.read_table(path)), target / "data.parquet")
    return target


def set_cell(table: pa.Table, row: int, **columns: object) -> pa.Table:
    rows = table.to_pylist()
    rows[row].update(columns)
    return pa.Table.from_pylist(rows, schema=table.schema)


def with_nan(table: pa.Table) -> pa.Table:
    row = table.to_pylist()[1]
    latent = np.frombuffer(row["vae_latent_bytes"], dtype=np.float32).copy()
    latent[7] = np.nan
    return set_cell(table, 1, vae_latent_bytes=latent.tobytes())


def with_wrong_shape(table: pa.Table) -> pa.Table:
    latent = np.zeros((16, 3, 8, 4), dtype=np.float32)
    return set_cell(table, 1, vae_latent_bytes=latent.tobytes(), vae_latent_shape=[16, 3, 8, 4])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.drop_columns(["vae_latent_shape"]), ["vae_latent_shape", "data.parquet"]),
        (with_wrong_shape, ["8, 4", "8, 8", "data.parquet"]),
        (with_nan, ["vae_latent", "data.parquet", "row"]),
        (lambda table: set_cell(table, 0, vae_latent_bytes=b"12345"), ["vae_latent", "data.parquet"]),
        (lambda table: table.slice(0, 0), ["no"]),
    ],
    ids=["missing column", "wrong shape", "NaN", "torn bytes", "no rows"],
)
def test_bad_parquet(tmp_path, prepared_clips, write_run_file, capfd, change, words):
    data = rewrite(prepared_clips, tmp_path / "data", change)
    run_file = write_run_file("finetune", output_dir=tmp_path / "out", training={"data_path": str(data)})
    said = fails(capfd, "run", str(run_file))
    for word in words:
        assert word in said
    assert not (tmp_path / "out/checkpoints").exists()


def test_data_of_a_separate_writer_trains(tmp_path, prepared_clips, write_run_file):
    """Rows written from the schema alone, with half-precision text: what another program's writer would make."""
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("vae_latent_bytes", pa.binary()),
            ("vae_latent_shape", pa.list_(pa.int64())),
            ("vae_latent_dtype", pa.string()),
            ("text_embedding_bytes", pa.binary()),
            ("text_embedding_shape", pa.list_(pa.int64())),
            ("text_embedding_dtype", pa.string()),
            ("file_name", pa.string()),
            ("caption", pa.string()),
            ("media_type", pa.string()),
            ("width", pa.int64()),
            ("height", pa.int64()),
            ("num_frames", pa.int64()),
            ("duration_sec", pa.float64()),
            ("fps", pa.float64()),
        ]
    )
    (ours,) = prepared_clips.glob("**/*.parquet")
    assert pq.read_schema(ours).equals(schema)
    rng = np.random.default_rng(0)
    rows = [
        {
            "id": f"clip-{index}",
            "vae_latent_bytes": rng.standard_normal((16, 3, 8, 8)).astype(np.float32).tobytes(),
            "vae_latent_shape": [16, 3, 8, 8],
            "vae_latent_dtype": "float32",
            "text_embedding_bytes": rng.standard_normal((5 + index, 32)).astype(np.float16).tobytes(),
            "text_embedding_shape": [5 + index, 32],
            "text_embedding_dtype": "float16",
            "file_name": f"{index}.mp4",
            "caption": "noise",
            "media_type": "video",
            "width": 64,
            "height": 64,
            "num_frames": 3,
            "duration_sec": 0.5625,
            "fps": 16.0,
        }
        for index in range(3)
    ]
    folder = tmp_path / "foreign/worker_0"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "data_chunk_0.parquet", compression="zstd")
    data = {"data_path": str(tmp_path / "foreign"), "max_train_steps": 2}
    for method in ("finetune", "dmd2"):
        assert main(["run", str(write_run_file(method, output_dir=tmp_path / method, training=data))]) == 0


def test_data_free_distillation_needs_text_only(tmp_path, tiny_wan, write_run_file, capfd):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red square\na green square\n", encoding="utf-8")
    data = tmp_path / "text"
    arguments = ["--text-only", "--family", "wan", "--model", str(tiny_wan), "--out", str(data)]
    assert main(["data", "prepare", str(prompts), *arguments]) == 0
    size = {"num_frames": 9, "num_height": 64, "num_width": 64, "max_train_steps": 2, "data_path": str(data)}
    assert main(["run", str(write_run_file("dmd2", output_dir=tmp_path / "a", training=size))]) == 0
    video = tmp_path / "s.mp4"
    assert main(["sample", str(tmp_path / "a"), "--prompt", "x", "--out", str(video)]) == 0
    unsized = {"max_train_steps": 2, "data_path": str(data)}
    assert "num_height" in fails(capfd, "run", str(write_run_file("dmd2", output_dir=tmp_path / "b", training=unsized)))
    said = fails(capfd, "run", str(write_run_file("finetune", output_dir=tmp_path / "c", training=size)))
    assert "vae_latent" in said


def test_no_data_folder(tmp_path, write_run_file, capfd):
    run_file = write_run_file("finetune", output_dir=tmp_path / "out", training={"data_path": str(tmp_path / "nothing")})
    assert "fvd data prepare" in fails(capfd, "run", str(run_file))
    assert not (tmp_path / "out").exists()


# --- disk ---
FULL_DISK = """
import resource, sys
from fvd.cli.main import main
import fvd.checkpoint.manager as manager
import fvd.trainer
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.exit(main({arguments!r}))
"""


def test_a_full_disk_while_saving(tmp_path, write_run_file):
    """A real write that the system refuses, in the middle of a checkpoint. What was there stays; nothing half is left."""
    run_file = write_run_file("finetune", output_dir=tmp_path / "out", training={"max_train_steps": 2})
    assert main(["run", str(run_file)]) == 0
    first = tmp_path / "out/checkpoints/step-00000002"
    content = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    size = max(len(data) for data in content.values())
    arguments = ["run", str(run_file), "--set", "training.max_train_steps=4"]
    program = FULL_DISK.format(limit=size // 2, arguments=arguments)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert "the checkpoint of step 4 could not be written" in result.stderr
    assert "continues from step 2" in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in (tmp_path / "out/checkpoints").iterdir()] == ["step-00000002"]
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == content
    assert main(arguments) == 0
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_sample_and_export_of_what_is_no_run(tmp_path, capfd):
    (tmp_path / "x").mkdir()
    video = str(tmp_path / "s.mp4")
    assert "run.yaml" in fails(capfd, "sample", str(tmp_path / "x"), "--prompt", "a", "--out", video)
    assert "run.yaml" in fails(capfd, "export", str(tmp_path / "x"), "--out", str(tmp_path / "e"))
    assert ".mp4" in fails(capfd, "sample", str(tmp_path / "x"), "--prompt", "a", "--out", "s.gif")


@pytest.mark.parametrize(
    "option",
    [("--fps", "0"), ("--fps", "nan"), ("--guidance-scale", "nan"), ("--seed", "-1"), ("--seed", str(2**63)), ("--steps", "0")],
    ids=" ".join,
)
def test_sample_refuses_numbers_that_make_no_video(tmp_path, capfd, option):
    arguments = ["sample", str(tmp_path), "--prompt", "a", "--out", str(tmp_path / "s.mp4"), *option]
    assert main(arguments) == 2
    assert option[0] in capfd.readouterr().err
