"""Plugins of other people, at work in real runs: a sampler, a validator, a tracker, and a second `wan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import fvd
from fvd.cli.main import main
from fvd.plugins import load_plugins
from fvd.testing import fake_dist, installed_in
from fvd.testing.toy.config import ToyConfig
from fvd.testing.toy.workbench import toy_family

LOOP = """
    import json
    import torch
    from pathlib import Path

    CALLS = Path({calls!r})

    @torch.no_grad()
    def sample(model, latents, *, scheduler, timesteps, generators):
        with CALLS.open("a") as file:
            file.write(json.dumps([type(scheduler).__name__, len(timesteps), len(generators), model.guidance_scale]) + "\\n")
        for t in timesteps:
            prediction = model.predict(latents, t.expand(latents.shape[0]))
            latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
        return latents
"""

LOOP_PLUGIN = """
    import fvd

    @fvd.hookimpl
    def fvd_samplers():
        return [fvd.SamplerSpec(name="acme_loop", target="acme_loop.loop:sample", scheduler="ode", summary="as ode")]
"""

WAN_PLUGIN = """
    import fvd

    @fvd.hookimpl
    def fvd_families():
        return [
            fvd.FamilySpec(
                name="wan",
                target="acme_wan.family:AcmeFamily",
                config="fvd_wan.config:WanConfig",
                provides=fvd.TEXT_TO_VIDEO,
                samplers={"ode", "sde"},
                validator="prompts_only",
            )
        ]

    @fvd.hookimpl
    def fvd_validators():
        return [fvd.ValidatorSpec(name="prompts_only", target="acme_wan.validator:PromptsOnly", summary="text files")]
"""

WAN_MODULES = {
    "acme_wan.plugin": WAN_PLUGIN,
    "acme_wan.family": """
        import torch
        from fvd_wan.adapter import WanAdapter
        from fvd_wan.family import WanFamily

        class AcmeAdapter(WanAdapter):
            def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
                velocity = super().predict(handle, x_t, t, cond, attn_kind=attn_kind)
                return velocity[:, :1] if self.config.negative_prompt == "broken" else velocity

        class AcmeFamily(WanFamily):
            adapter_class = AcmeAdapter
    """,
    "acme_wan.validator": """
        import fvd
        from fvd.files import folder_written_aside

        class PromptsOnly(fvd.Validator):
            def on_train_start(self, request):
                self.shape = self.context.latent_shape
                assert self.context.adapter.encode_prompts(["x"]) is not None
                assert self.context.load_sampler(request.plan.sampler_kind).spec.name == "ode"

            def log_validation(self, step, request):
                with folder_written_aside(self.step_dir(step)) as folder:
                    for index, prompt in enumerate(self.context.prompts):
                        (folder / f"{index}.txt").write_text(f"{prompt.text} {prompt.seed} {list(self.shape)}")
                return [
                    fvd.Artifact("validation/text", self.step_dir(step) / f"{index}.txt", prompt.text)
                    for index, prompt in enumerate(self.context.prompts)
                ]
    """,
}

DIARY_MODULES = {
    "acme_diary.plugin": """
        import fvd

        @fvd.hookimpl
        def fvd_trackers():
            return [fvd.TrackerSpec(name="diary", target="acme_diary.diary:Diary")]
    """,
    "acme_diary.diary": """
        import json
        import fvd

        class Diary(fvd.Tracker):
            def __init__(self, context):
                self.path = context.log_dir / "diary.jsonl"
                self.note("start", context.start_step)

            def note(self, *entry):
                with self.path.open("a") as file:
                    file.write(json.dumps(entry) + "\\n")

            def log(self, metrics, step):
                self.note("log", step)

            def log_video(self, name, path, step, caption):
                self.note("video", step, name, path.name, path.stat().st_size > 0, caption)

            def log_file(self, path):
                self.note("file", path.name, path.read_text())

            def finish(self):
                self.note("finish")
    """,
}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    monkeypatch.delenv("FVD_PLUGINS", raising=False)
    monkeypatch.delenv("FVD_DISABLE_PLUGINS", raising=False)
    folder = tmp_path / "site"
    folder.mkdir()
    with installed_in(folder):
        yield folder


def install(folder: Path, distribution: str, plugin: str, module: str, modules: dict[str, str]) -> None:
    fake_dist(folder, distribution, entry_points={plugin: module}, modules=modules)


def entries(out: Path) -> list[list[object]]:
    return [json.loads(line) for line in (out / "logs/diary/diary.jsonl").read_text().splitlines()]


# --- samplers --------------------------------------------------------------------------------------------------------
def test_a_sampler_of_another_distribution_samples_wan(tmp_path, installed, write_run_file, monkeypatch, capfd):
    """It asks for the scheduler of kind ode, which Wan has, under a name that Wan has never heard of."""
    calls = tmp_path / "calls.jsonl"
    modules = {"acme_loop.plugin": LOOP_PLUGIN, "acme_loop.loop": LOOP.format(calls=str(calls))}
    install(installed, "acme-loop", "acme_loop", "acme_loop.plugin", modules)
    out = tmp_path / "out"
    training = {"max_train_steps": 1, "log_validation": True, "validation_guidance_scale": 3}
    run_file = write_run_file("finetune", output_dir=out, training=training, pipeline_config={"sampler_kind": "acme_loop"})
    assert main(["run", str(run_file)]) == 0
    assert (out / "validation/step-00000001/000_acme_loop_2_steps.mp4").stat().st_size > 0
    lock = json.loads((out / "run.lock.json").read_text())
    (entry,) = [plugin for plugin in lock["plugins"] if plugin["distribution"] == "acme-loop"]
    assert entry["components"] == ["sampler:acme_loop"]

    videos = []
    monkeypatch.setattr("fvd.data.video.write_video", lambda path, video, fps: videos.append(video))
    options = ["--prompt", "a", "--out", str(tmp_path / "s.mp4"), "--steps", "4"]
    for sampler in (["--sampler", "acme_loop"], ["--sampler", "ode"], []):
        assert main(["sample", str(out), *options, *sampler]) == 0
    mine, core, default = videos
    assert torch.equal(mine, core)
    assert torch.equal(mine, default)  # the run file says acme_loop
    made = [json.loads(line) for line in calls.read_text().splitlines()]
    unipc = "UniPCMultistepScheduler"
    assert made == [[unipc, 2, 1, 3.0]] * 2 + [[unipc, 4, 1, 3.0]] * 2
    capfd.readouterr()
    assert main(["sample", str(out), *options, "--sampler", "acme_lop"]) == 1
    assert "did you mean 'acme_loop'" in capfd.readouterr().err


def test_a_ladder_is_not_put_upon_a_solver(tmp_path, installed, write_run_file, monkeypatch):
    """A student with a ladder, sampled by a loop that takes a number of steps."""
    calls = tmp_path / "calls.jsonl"
    modules = {"acme_loop.plugin": LOOP_PLUGIN, "acme_loop.loop": LOOP.format(calls=str(calls))}
    install(installed, "acme-loop", "acme_loop", "acme_loop.plugin", modules)
    assert main(["run", str(write_run_file("dmd2", output_dir=tmp_path / "out", training={"max_train_steps": 1}))]) == 0
    video = tmp_path / "s.mp4"
    assert main(["sample", str(tmp_path / "out"), "--prompt", "a", "--out", str(video), "--sampler", "acme_loop"]) == 0
    assert [json.loads(line)[1] for line in calls.read_text().splitlines()] == [4]
    assert video.stat().st_size > 0


def test_heun_is_of_second_order_and_ddim_of_first(third_party):
    """On the exact denoiser: twice the steps, a quarter of the error and a half; from and to where all is smooth."""
    third_party("fvd-heun", "fvd-slow")
    plugins = load_plugins()
    for predicts in ("velocity", "noise"):
        family = toy_family(predicts, config=ToyConfig(std=0.8))
        teacher = family.load_role("teacher", fvd.RoleConfig(path="analytic", trainable=False))
        adapter = family.build_adapter(fvd.RoleManager([teacher]))
        model = fvd.GuidedModel(adapter, teacher, adapter.encode_prompts(["mode 1"] * 64), None)
        noise = torch.randn(64, 2, 1, 1, 1, generator=torch.Generator().manual_seed(0))

        def made(name: str, steps: int, model=model, noise=noise) -> torch.Tensor:
            timesteps = torch.linspace(900, 100, steps + 1)
            return plugins.load("sampler", name)(model, noise, scheduler=None, timesteps=timesteps, generators=[])

        truth = made("heun", 400)
        for name, factor in (("heun", 4), ("slow", 2)):
            coarse, fine = ((made(name, steps) - truth).norm() for steps in (10, 20))
            assert factor / 1.2 < coarse / fine < factor * 1.2, (predicts, name)


# --- families --------------------------------------------------------------------------------------------------------
def test_two_distributions_provide_wan_and_the_run_file_says_which(tmp_path, installed, write_run_file, capfd):
    """Each with its own validator: the family's descriptor names it."""
    install(installed, "acme-wan", "acme_wan", "acme_wan.plugin", WAN_MODULES)
    training = {"max_train_steps": 1, "log_validation": True}
    unclear = write_run_file("finetune", output_dir=tmp_path / "unclear", training=training)
    assert main(["check", str(unclear)]) == 1
    said = "".join(capfd.readouterr())
    assert "'acme-wan:wan' or 'fvd-wan:wan'" in said
    assert main(["run", str(unclear)]) == 1
    assert not (tmp_path / "unclear").exists()

    files = {"acme-wan": ["0.txt"], "fvd-wan": ["000_ode_2_steps.mp4", "prompts.jsonl"]}
    for distribution, expected in files.items():
        out = tmp_path / distribution
        recipe = {"family": f"{distribution}:wan"}
        run_file = write_run_file("finetune", output_dir=out, name=f"{distribution}.yaml", recipe=recipe, training=training)
        assert main(["check", str(run_file)]) == 0
        assert main(["run", str(run_file)]) == 0
        assert sorted(path.name for path in (out / "validation/step-00000001").iterdir()) == expected
        lock = json.loads((out / "run.lock.json").read_text())
        used = {plugin["distribution"]: plugin["components"] for plugin in lock["plugins"]}
        assert "family:wan" in used.pop(distribution)
        assert not any("family:wan" in components for components in used.values())
        # its own run.yaml is a run file, and the run continues, samples and exports under that name
        assert yaml.safe_load((out / "run.yaml").read_text())["recipe"]["family"] == f"{distribution}:wan"
        assert main(["run", str(run_file), "--set", "training.max_train_steps=2"]) == 0
        assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [1, 2]
        video = tmp_path / "s.mp4"
        assert main(["sample", str(out), "--prompt", "a", "--out", str(video), "--steps", "1"]) == 0
        assert main(["export", str(out), "--out", str(tmp_path / f"{distribution}-exported")]) == 0
    text = (tmp_path / "acme-wan/validation/step-00000001/0.txt").read_text()
    assert text == "a red square 0 [16, 3, 8, 8]"
    # the two are different runs
    assert main(["run", str(run_file), "--set", f"training.output_dir={tmp_path / 'acme-wan'}"]) == 1
    assert "recipe.family: 'acme-wan:wan' -> 'fvd-wan:wan'" in capfd.readouterr().err


def test_a_network_of_another_shape_ends_the_run_with_the_family_in_the_message(tmp_path, installed, write_run_file, capfd):
    install(installed, "acme-wan", "acme_wan", "acme_wan.plugin", WAN_MODULES)
    run_file = write_run_file(
        "dmd2",
        output_dir=tmp_path / "out",
        recipe={"family": "acme-wan:wan"},
        pipeline_config={"negative_prompt": "broken"},
        training={"max_train_steps": 1},
    )
    assert main(["run", str(run_file)]) == 1
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert "AcmeAdapter.predict" in error
    assert "must return float32 of shape [2, 16, 3, 8, 8]" in error


def test_an_export_that_writes_nothing_is_no_success(tmp_path, installed, write_run_file, capfd):
    family = WAN_MODULES["acme_wan.family"] + "\n            def export(self, handle, out_dir, format): pass\n"
    install(installed, "acme-wan", "acme_wan", "acme_wan.plugin", {**WAN_MODULES, "acme_wan.family": family})
    out = tmp_path / "out"
    run_file = write_run_file("finetune", output_dir=out, recipe={"family": "acme-wan:wan"}, training={"max_train_steps": 1})
    assert main(["run", str(run_file)]) == 0
    assert main(["export", str(out), "--out", str(tmp_path / "exported")]) == 1
    assert "the family wan has written nothing for the format 'diffusers'" in capfd.readouterr().err
    assert not (tmp_path / "exported").exists()


# --- trackers --------------------------------------------------------------------------------------------------------
def test_trackers_get_the_run_file_and_after_a_kill_the_videos_again(tmp_path, installed, write_run_file):
    install(installed, "acme-diary", "acme_diary", "acme_diary.plugin", DIARY_MODULES)
    out = tmp_path / "out"
    training = {
        "max_train_steps": 3,
        "training_state_checkpointing_steps": 2,
        "log_validation": True,
        "validation_steps": 1,
        "validation_sampling_steps": 1,
        "validation_guidance_scale": 1,
        "trackers": ["diary"],
    }
    run_file = write_run_file("finetune", output_dir=out, training=training)
    assert main(["run", str(run_file)]) == 0
    first = entries(out)
    assert first[:2] == [["start", 0], ["file", "given-run.yaml", run_file.read_text()]]
    assert [entry[:2] for entry in first[2:]] == [
        ["video", 0],
        *([kind, step] for step in (1, 2, 3) for kind in ("log", "video")),
        ["finish"],
    ]
    video = ["video", 3, "validation/000_ode_1_steps", "000_ode_1_steps.mp4", True, "a red square"]
    assert video in first

    # as if killed between the checkpoint of step 2 and that of step 3, while writing a video
    last = out / "checkpoints/step-00000003"
    for path in sorted(last.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    last.rmdir()
    for name in (".step-00000003.writing", "step-00000009"):  # of a longer run, before a step that is made again
        (out / "validation" / name).mkdir()
    videos = {step: out / f"validation/step-{step:08d}/000_ode_1_steps.mp4" for step in range(4)}
    before = {step: path.stat().st_ino for step, path in videos.items()}
    stale = videos[3].with_name("stale.mp4")
    stale.write_bytes(b"of the steps that were lost")
    assert main(["run", str(run_file)]) == 0
    again = entries(out)[len(first) :]
    assert [entry[:2] for entry in again] == [
        ["start", 2],
        ["file", "given-run.yaml"],
        ["log", 3],
        ["video", 3],
        ["finish"],
    ]
    after = {step: path.stat().st_ino for step, path in videos.items()}
    assert {step: before[step] == after[step] for step in (0, 1, 2)} == {0: True, 1: True, 2: True}
    assert not stale.exists()
    assert sorted(path.name for path in (out / "validation").iterdir()) == [f"step-{step:08d}" for step in range(4)]


def test_a_tracker_that_cannot_start_is_left_out(tmp_path, installed, write_run_file):
    broken = {**DIARY_MODULES, "acme_diary.diary": "def Diary(context): raise RuntimeError('no server')"}
    install(installed, "acme-diary", "acme_diary", "acme_diary.plugin", broken)
    training = {"max_train_steps": 1, "trackers": ["diary"]}
    assert main(["run", str(write_run_file("finetune", output_dir=tmp_path / "out", training=training))]) == 0
    log = (tmp_path / "out/logs/fvd.log").read_text()
    assert "tracker diary could not be started" in log
    assert "no server" in log
    assert (tmp_path / "out/metrics.jsonl").read_text()


# --- validators ------------------------------------------------------------------------------------------------------
def test_a_run_file_names_somebody_elses_validator_and_tracker(tmp_path, third_party, write_run_file, capfd):
    third_party("fvd-strip", "fvd-csv")
    out = tmp_path / "out"
    training = {"max_train_steps": 2, "log_validation": True, "validator": "strip", "trackers": ["csv"]}
    run_file = write_run_file("finetune", output_dir=out, training=training)
    assert main(["run", str(run_file)]) == 0
    assert [path.name for path in sorted((out / "validation/step-00000002").iterdir())] == ["strip.mp4"]
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [line.split(",") for line in (out / "logs/csv/metrics.csv").read_text().splitlines()]
    assert [(int(step), float(value)) for step, name, value in rows if name == "train/loss"] == [
        (row["step"], row["train/loss"]) for row in logged
    ]
    used = {plugin["distribution"] for plugin in json.loads((out / "run.lock.json").read_text())["plugins"]}
    assert {"fvd-strip", "fvd-csv"} <= used
    # another validator is no other run
    assert main(["run", str(run_file), "--set", "training.validator=video", "--set", "training.max_train_steps=3"]) == 0
    assert (out / "validation/step-00000003/000_ode_2_steps.mp4").stat().st_size > 0
    capfd.readouterr()
    assert main(["check", str(run_file), "--set", "training.validator=stripe"]) == 1
    assert "training.validator: there is no validator 'stripe' (did you mean 'strip'?)" in capfd.readouterr().out
