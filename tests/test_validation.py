"""Videos of a real (tiny) model: as diffusers' own pipeline makes them, during training and by `fvd sample`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline

from fvd.cli.main import main
from fvd.config.load import load_run_file
from fvd.runtime import build_runtime, plan_run
from fvd.signals import StopSignals
from fvd.trackers.base import TrackerGroup
from fvd.trainer import Trainer

STEPS, FLOW_SHIFT = 2, 3.0
PROMPTS = [{"prompt": "a red square", "seed": 41}, {"prompt": "a green circle"}]
NEGATIVE = "static, worst quality"


def sampled_by_diffusers(folder: Path, prompt: str, seed: int, guidance_scale: float, negative: str = NEGATIVE) -> torch.Tensor:
    """[3, T, H, W] in [0, 1]."""
    pipeline = WanPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT)
    frames = pipeline(
        prompt=prompt,
        negative_prompt=negative,
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    ).frames[0]
    return frames.movedim(1, 0)


def assert_same_video(one: torch.Tensor, other: torch.Tensor) -> None:
    assert one.std() > 0.05
    torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


@pytest.fixture
def written(monkeypatch) -> dict[str, torch.Tensor]:
    """What is handed to the writer of mp4 files, before any compression."""
    videos: dict[str, torch.Tensor] = {}

    def write(path, video, fps):
        videos[path.name] = video
        path.write_bytes(b"mp4")

    # In this order: the validator must not be imported while its source is patched, or it would keep the fake.
    monkeypatch.setattr("fvd.validation.video.write_video", write)
    monkeypatch.setattr("fvd.data.video.write_video", write)
    return videos


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_validation_honours_guidance_negative_prompt_and_the_prompts_own_seeds(
    tmp_path, write_run_file, tiny_wan, written, guidance_scale
):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS), encoding="utf-8")
    training = {
        "seed": 7,
        "log_validation": True,
        "validation_dataset_file": str(prompts),
        "validation_sampling_steps": STEPS,
        "validation_guidance_scale": guidance_scale,
    }
    pipeline_config = {"flow_shift": FLOW_SHIFT, "negative_prompt": NEGATIVE}
    run_file = write_run_file("finetune", output_dir=tmp_path / "out", training=training, pipeline_config=pipeline_config)
    runtime = build_runtime(plan_run(load_run_file(run_file), resume="auto"))
    with StopSignals() as stop:
        Trainer(runtime, TrackerGroup({}), stop).prepare()  # validates step 0: the weights are those of the folder
    assert sorted(written) == ["000_ode_2_steps.mp4", "001_ode_2_steps.mp4"]
    for index, seed in ((0, 41), (1, 7 + 1)):
        expected = sampled_by_diffusers(tiny_wan, PROMPTS[index]["prompt"], seed, guidance_scale)
        assert_same_video(written[f"{index:03d}_ode_2_steps.mp4"], expected)
    listed = [json.loads(line) for line in (runtime.validator.step_dir(0) / "prompts.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["seed"]) for row in listed] == [("a red square", "41"), ("a green circle", "8")]


def test_validation_changes_nothing_of_training(tmp_path, write_run_file):
    """Neither its draws nor its modes: the same metrics with it and without."""
    rows = {}
    for validates in (True, False):
        training = {"max_train_steps": 3, "log_validation": validates, "validation_steps": 1}
        out = tmp_path / str(validates)
        assert main(["run", str(write_run_file("dmd2", output_dir=out, training=training))]) == 0
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        rows[validates] = [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in lines]
    assert rows[True] == rows[False]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_documents) -> Path:
    """A finetuned run of one step, and its export beside it."""
    import yaml

    folder = tmp_path_factory.mktemp("trained")
    document = run_documents["finetune"]
    training = {**document["training"], "max_train_steps": 1, "output_dir": str(folder / "out")}
    (folder / "run.yaml").write_text(yaml.safe_dump({**document, "training": training}), encoding="utf-8")
    assert main(["run", str(folder / "run.yaml")]) == 0
    assert main(["export", str(folder / "out"), "--out", str(folder / "exported")]) == 0
    return folder


def sample(trained: Path, written: dict[str, torch.Tensor], *options: str) -> torch.Tensor:
    video = trained / "sample.mp4"
    arguments = ["sample", str(trained / "out"), "--prompt", "a red square", "--seed", "5", "--steps", str(STEPS)]
    assert main([*arguments, "--out", str(video), *options]) == 0
    return written["sample.mp4"]


def test_sample_is_the_video_of_the_exported_pipeline(trained, written):
    video = sample(trained, written, "--guidance-scale", "6", "--negative-prompt", NEGATIVE)
    assert_same_video(video, sampled_by_diffusers(trained / "exported", "a red square", 5, 6.0))
    assert video.shape == (3, 9, 64, 64)


def test_a_negative_prompt_has_an_effect_and_the_familys_is_the_default(trained, written):
    from fvd_wan.config import WAN_NEGATIVE_PROMPT

    default, familys, other, empty = (
        sample(trained, written, "--guidance-scale", "6", *options)
        for options in (
            (),
            ("--negative-prompt", WAN_NEGATIVE_PROMPT),
            ("--negative-prompt", NEGATIVE),
            ("--negative-prompt", ""),
        )
    )
    assert torch.equal(default, familys)
    for video in (other, empty):
        assert (video - default).abs().max() > 1e-2
    assert (other - empty).abs().max() > 1e-2
    unguided = [
        sample(trained, written, "--guidance-scale", "1", *options) for options in ((), ("--negative-prompt", NEGATIVE))
    ]
    assert torch.equal(*unguided)  # there is no unconditional pass


def test_the_size_of_a_sample(trained, written, capfd):
    size = ("--num-frames", "5", "--height", "32", "--width", "96")
    assert sample(trained, written, *size, "--guidance-scale", "1").shape == (3, 5, 32, 96)
    assert main(["sample", str(trained / "out"), "--prompt", "x", "--out", str(trained / "x.mp4"), "--height", "32"]) == 1
    assert "give all of" in capfd.readouterr().err
