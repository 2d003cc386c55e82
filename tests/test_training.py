"""Both methods on the tiny Wan pipeline, through the command line's own path."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import av
import pytest
import torch

import fvd
import fvd_wan.family
from fvd.cli.main import main
from fvd.config.load import load_run_file
from fvd.runtime import Runtime, build_runtime, plan_run
from fvd.signals import StopSignals
from fvd.trackers.base import TrackerGroup
from fvd.trainer import Trainer


def build(run_file: Path) -> Runtime:
    return build_runtime(plan_run(load_run_file(run_file), resume="auto"))


def weights(handle: fvd.RoleHandle) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in handle.modules["transformer"].state_dict().items()}


def moved(before: dict[str, torch.Tensor], handle: fvd.RoleHandle) -> bool:
    return any(not torch.equal(tensor, before[name]) for name, tensor in handle.modules["transformer"].state_dict().items())


def fixed_noise_loss(runtime: Runtime) -> float:
    """The finetuning loss at fixed noise levels and draws, on the data of the run: what training should lower."""
    handle = runtime.roles["student"]
    loader = runtime.loader
    batch = runtime.adapter.prepare_batch(next(iter(loader)), latents_source="data")
    losses = []
    with torch.no_grad():
        for level in (100.0, 300.0, 500.0, 700.0, 900.0):
            t = torch.full((batch.batch_size,), level)
            noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(int(level)))
            prediction = runtime.adapter.predict(handle, runtime.adapter.add_noise(batch.latents, noise, t), t, batch.cond)
            losses.append((prediction - runtime.adapter.training_target(batch.latents, noise, t)).square().mean())
    return float(torch.stack(losses).mean())


def test_finetuning_lowers_the_loss_by_two_fifths(tmp_path, write_run_file):
    run_file = write_run_file(
        "finetune",
        output_dir=tmp_path / "out",
        training={"max_train_steps": 150, "learning_rate": 5e-3, "log_validation": False},
        method_config={"timestep_density": "uniform"},
    )
    runtime = build(run_file)
    before = fixed_noise_loss(runtime)
    with StopSignals() as stop:
        Trainer(runtime, TrackerGroup({}), stop).fit()
    after = fixed_noise_loss(runtime)
    assert after < 0.6 * before, (before, after)


def test_who_moves_when(tmp_path, write_run_file):
    run_file = write_run_file(
        "dmd2", output_dir=tmp_path / "out", training={"max_train_steps": 6}, method_config={"generator_update_interval": 3}
    )
    runtime = build(run_file)
    teacher = weights(runtime.roles["teacher"])
    moves: dict[str, list[int]] = {"student": [], "critic": []}
    with StopSignals() as stop:
        trainer = Trainer(runtime, TrackerGroup({}), stop)
        trainer.prepare()
        batches = iter(runtime.loader)
        for step in range(1, 7):
            trainer.step = step
            before = {role: weights(runtime.roles[role]) for role in moves}
            trainer.train_step(batches)
            for role, steps in moves.items():
                if moved(before[role], runtime.roles[role]):
                    steps.append(step)
    assert moves == {"student": [3, 6], "critic": [1, 2, 3, 4, 5, 6]}
    assert not moved(teacher, runtime.roles["teacher"])
    assert all(parameter.grad is None for parameter in runtime.roles["teacher"].modules["transformer"].parameters())
    schedulers = {role: runtime.roles[role].lr_schedulers["main"].last_epoch for role in moves}
    assert schedulers == {"student": 2, "critic": 6}  # clocks tick with their role


@pytest.mark.parametrize("accumulation", [2, 4])
def test_micro_batches_do_not_change_the_gradient(tmp_path, write_run_file, accumulation):
    """Draws are keyed by the sample's position in the global batch, so 1 x 4, 2 x 2 and 4 x 1 train on the same numbers."""

    def first_step(name: str, batch_size: int, steps: int) -> dict[str, torch.Tensor]:
        training = {
            "train_batch_size": batch_size,
            "gradient_accumulation_steps": steps,
            "max_train_steps": 1,
            "max_grad_norm": 0,
        }
        runtime = build(write_run_file("dmd2", output_dir=tmp_path / name, name=f"{name}.yaml", training=training))
        with StopSignals() as stop:
            trainer = Trainer(runtime, TrackerGroup({}), stop)
            trainer.prepare()
            trainer.step = 2  # the student is due
            batches = iter(runtime.loader)
            for role in ("student", "critic"):
                runtime.roles[role].optimizers["main"].zero_grad()
            trainer.update = lambda due, metrics: {}  # keep the gradients
            trainer.train_step(batches)
        return {
            f"{role}.{name}": parameter.grad.clone()
            for role in ("student", "critic")
            for name, parameter in runtime.roles[role].modules["transformer"].named_parameters()
            if parameter.grad is not None
        }

    whole = first_step("whole", 4, 1)
    parts = first_step(f"parts{accumulation}", 4 // accumulation, accumulation)
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=2e-4, atol=1e-7)


def living_encoders() -> list[torch.nn.Module]:
    from diffusers import AutoencoderKLWan
    from transformers import UMT5EncoderModel

    gc.collect()
    modules = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.nn.Module)]
    return [module for module in modules if isinstance(module, (AutoencoderKLWan, UMT5EncoderModel))]


@pytest.mark.parametrize(("method", "validation"), [("finetune", True), ("dmd2", False)])
def test_encoders_are_not_in_memory_while_training(tmp_path, write_run_file, method, validation):
    """After preparation neither VAE nor text encoder is alive, although they were used: for prompts and a validation,
    or for the negative prompt alone."""
    others = {id(encoder) for encoder in living_encoders()}  # of other tests in this process
    training = {"log_validation": validation, "max_train_steps": 1}
    run_file = write_run_file(method, output_dir=tmp_path / "out", training=training)
    runtime = build(run_file)
    with StopSignals() as stop:
        Trainer(runtime, TrackerGroup({}), stop).prepare()
    if validation:
        assert len(list(runtime.validator.step_dir(0).glob("*.mp4"))) == 1
    else:
        assert runtime.adapter.negative_conditioning(1) is not None
    assert [type(encoder).__name__ for encoder in living_encoders() if id(encoder) not in others] == []
    assert isinstance(runtime.family, fvd_wan.family.WanFamily)


def test_a_run_directory_holds_what_it_should(tmp_path, write_run_file):
    run_file = write_run_file(
        "dmd2",
        output_dir=tmp_path / "out",
        training={
            "max_train_steps": 4,
            "training_state_checkpointing_steps": 1,
            "checkpoints_total_limit": 2,
            "log_validation": True,
            "validation_steps": 2,
            "trackers": ["tensorboard", "wandb"],
        },
    )
    assert main(["run", str(run_file)]) == 0
    out = tmp_path / "out"
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-00000003", "step-00000004"]
    assert sorted(p.name for p in (out / "validation").iterdir()) == ["step-00000000", "step-00000002", "step-00000004"]
    for step in (0, 2, 4):
        with av.open(str(out / f"validation/step-{step:08d}/000_sde_4_steps.mp4")) as container:
            frames = sum(1 for _ in container.decode(video=0))
        assert frames == 9
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    names = {"train/critic_loss", "grad_norm/critic", "lr/critic", "perf/samples_per_second", "perf/step_seconds"}
    assert names | {"perf/data_wait_share", "perf/peak_memory_mib"} <= rows[0].keys()
    assert "train/student_loss" in rows[1]
    assert "train/student_loss" not in rows[0]
    lock = json.loads((out / "run.lock.json").read_text())
    assert {"fvd-wan", "fvd-dmd2", "fvd-core"} <= {plugin["distribution"] for plugin in lock["plugins"]}
    assert list((out / "logs/tensorboard").glob("events.*"))
    assert list((out / "logs/wandb").glob("**/*.wandb"))
    assert (out / "logs/given-run.yaml").read_text() == run_file.read_text()
    assert main(["check", str(out / "run.yaml")]) == 0


def test_a_teacher_of_another_size(tmp_path, write_run_file, tiny_wan):
    """More layers and more heads than the student: what roles share is the latents and the text, not the network."""
    from diffusers import WanTransformer3DModel

    small = WanTransformer3DModel.load_config(tiny_wan / "transformer")
    torch.manual_seed(0)
    large = WanTransformer3DModel.from_config({**small, "num_layers": 5, "num_attention_heads": 10})
    large.save_pretrained(tmp_path / "large/transformer")
    roles = {"teacher": {"path": str(tmp_path / "large/transformer")}}
    run_file = write_run_file("dmd2", output_dir=tmp_path / "out", roles=roles, training={"max_train_steps": 2})
    assert main(["check", str(run_file)]) == 0
    runtime = build(run_file)
    before = {handle.name: weights(handle) for handle in runtime.roles}
    assert len(before["teacher"]) > len(before["student"])
    with StopSignals() as stop:
        outcome = Trainer(runtime, TrackerGroup({}), stop).fit()
    assert (outcome.status, outcome.step) == ("finished", 2)
    assert {handle.name: moved(before[handle.name], handle) for handle in runtime.roles} == {
        "student": True,
        "teacher": False,
        "critic": True,
    }
    assert all(torch.isfinite(tensor).all() for tensor in weights(runtime.roles["student"]).values())


def test_recomputing_activations_trains_the_same(tmp_path, write_run_file):
    rows = []
    for kind in (None, "full"):
        out = tmp_path / str(kind)
        training = {"max_train_steps": 2, "enable_gradient_checkpointing_type": kind}
        assert main(["run", str(write_run_file("dmd2", output_dir=out, training=training))]) == 0
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        rows.append([{name: value for name, value in row.items() if not name.startswith("perf/")} for row in lines])
    assert rows[0] == rows[1]
    assert "train/student_loss" in rows[0][1]


def test_only_trained_roles_are_recomputed(tmp_path, write_run_file, monkeypatch):
    asked = []
    monkeypatch.setattr("fvd.runtime.recompute_activations", lambda family, handle: asked.append(handle.name))
    build(write_run_file("dmd2", output_dir=tmp_path / "a", training={"enable_gradient_checkpointing_type": "full"}))
    build(write_run_file("dmd2", output_dir=tmp_path / "b"))
    assert asked == ["student", "critic"]


def test_the_size_in_the_run_file(tmp_path, write_run_file, capfd):
    """It must be the data's where the data are trained on; a method that generates follows it."""
    size = {"num_frames": 5, "num_height": 32, "num_width": 64, "max_train_steps": 1}
    assert main(["run", str(write_run_file("finetune", output_dir=tmp_path / "a", training=size))]) == 1
    error = capfd.readouterr().err
    assert "[16, 3, 8, 8]" in error
    assert "[16, 2, 4, 8]" in error
    assert not (tmp_path / "a/run.yaml").exists()
    run_file = write_run_file("dmd2", output_dir=tmp_path / "b", training={**size, "log_validation": True})
    assert main(["run", str(run_file)]) == 0
    for video in (tmp_path / "b/validation/step-00000001/000_sde_4_steps.mp4", tmp_path / "s.mp4"):
        if video.name == "s.mp4":
            assert main(["sample", str(tmp_path / "b"), "--prompt", "x", "--out", str(video)]) == 0
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            assert (stream.height, stream.width) == (32, 64)
            assert sum(1 for _ in container.decode(stream)) == 5
    assert json.loads((tmp_path / "b/run.lock.json").read_text())["latent_shape"] == [16, 2, 4, 8]


def test_sample_and_export(tmp_path, write_run_file):
    """The exported folder reloads in diffusers, bitwise; the sample is a video of the size that was trained."""
    from diffusers import WanPipeline
    from safetensors.torch import load_file

    run_file = write_run_file("dmd2", output_dir=tmp_path / "out", training={"max_train_steps": 2})
    assert main(["run", str(run_file)]) == 0
    video = tmp_path / "sample.mp4"
    assert main(["sample", str(tmp_path / "out"), "--prompt", "a red square", "--out", str(video)]) == 0
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (64, 64)
        assert sum(1 for _ in container.decode(stream)) == 9
    exported = tmp_path / "exported"
    assert main(["export", str(tmp_path / "out"), "--role", "student", "--to", "diffusers", "--out", str(exported)]) == 0
    pipeline = WanPipeline.from_pretrained(str(exported))
    runtime = build(run_file)
    runtime.checkpoints.load(runtime.resume_from, runtime.roles, runtime.method)
    trained = runtime.roles["student"].modules["transformer"].state_dict()
    reloaded = pipeline.transformer.state_dict()
    assert trained.keys() == reloaded.keys()
    assert all(torch.equal(trained[name], reloaded[name]) for name in trained)
    original = load_file(Path(runtime.config.roles["student"].path) / "transformer/diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(original[name], reloaded[name]) for name in original)
    assert main(["export", str(tmp_path / "out"), "--out", str(exported)]) == 1  # not empty
    assert main(["export", str(tmp_path / "out"), "--to", "gguf", "--out", str(tmp_path / "x")]) == 1
    assert not (tmp_path / "x").exists()
