"""docs/writing-plugins.md is true: its files are installed, its commands run, its tables are those of the code.

The three plugins of the guide meet core, wan, finetune and dmd2, none of which knows them: N families + M methods.
"""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from fvd import hookspecs
from fvd.plugins import load_plugins
from fvd.specs import PRIMITIVES, SAMPLING_PRIMITIVES
from fvd.testing import assert_light_module, fake_dist, installed_in

GUIDE = (Path(__file__).parents[1] / "docs/writing-plugins.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w./-]+\.\w+)`[^\n]*:\n\n```\w+\n(.*?)^```$", GUIDE, flags=re.DOTALL | re.MULTILINE))
CONSOLE = re.findall(r"^```console\n(.*?)^```$", GUIDE, flags=re.DOTALL | re.MULTILINE)
PLUGINS = {"fvd-mini": "mini", "fvd-consistency": "consistency", "fvd-extras": "extras"}
VIDEO = {"num_frames": 6, "num_height": 64, "num_width": 64}

# Runs many commands in one interpreter: torch is imported once.
DRIVER = """
import contextlib, io, json, sys, traceback
from fvd.cli.main import main

results = {}
for name, arguments in json.loads(sys.argv[1]).items():
    print(name, *arguments, file=sys.__stderr__, flush=True)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if arguments[0] == "pytest":
                import pytest
                status = int(pytest.main(arguments[1:]))
            else:
                status = main(arguments)
        except Exception:
            traceback.print_exc()
            status = -1
    results[name] = [status, out.getvalue(), err.getvalue()]
    with open(sys.argv[2], "w") as file:
        json.dump(results, file)
"""


@dataclass(frozen=True)
class Outcome:
    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Workspace:
    """``site``: where the guide's distributions are installed. ``folder``: where its commands ran."""

    site: Path
    folder: Path
    outcomes: dict[str, Outcome]

    def succeeded(self, name: str) -> str:
        outcome = self.outcomes[name]
        assert outcome.status == 0, f"{name}: {outcome.stdout}\n{outcome.stderr}"
        return outcome.stdout

    def metrics(self, run: str) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.folder / f"outputs/{run}/metrics.jsonl").read_text().splitlines()]


def guide_commands() -> list[list[str]]:
    """What the section `Running it` types."""
    (block,) = [block for block in CONSOLE if "$ fvd run " in block]
    return [shlex.split(line)[2:] for line in block.splitlines() if line.startswith("$ fvd ")]


def install(site: Path) -> None:
    """The guide's distributions, from its own pyproject.toml files, as pip would lay them out."""
    for name in PLUGINS:
        project = tomllib.loads(FILES[f"{name}/pyproject.toml"])["project"]
        sources = {path: text for path, text in FILES.items() if path.startswith(f"{name}/{name.replace('-', '_')}/")}
        fake_dist(
            site,
            project["name"],
            project["version"],
            entry_points=project["entry-points"]["fvd.plugins"],
            modules={
                path.removeprefix(f"{name}/").removesuffix(".py").replace("/", "."): text for path, text in sources.items()
            },
            requires=project["dependencies"],
        )


def write_run_files(folder: Path) -> None:
    """The guide's run file, and the same section by section for other methods and families."""
    (folder / "mini.yaml").write_text(FILES["mini.yaml"], encoding="utf-8")
    guide = yaml.safe_load(FILES["mini.yaml"])

    def write(name: str, **changes: dict[str, Any]) -> None:
        document = copy.deepcopy(guide)
        document["training"] |= {"output_dir": f"outputs/{name}"}
        document["training"] |= changes.pop("training", {})
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(document | changes, sort_keys=False), encoding="utf-8")

    mini, wan = {"path": "models/mini"}, {"path": "models/wan"}
    ladder = {"dmd_denoising_steps": [1000, 500], "generator_update_interval": 2, "real_score_guidance_scale": 1.0}
    short = {"max_train_steps": 3}
    heun = {"sampler_kind": "heun"}
    steps = short | {"validation_sampling_steps": 2}
    everybody = {"student": mini, "teacher": mini, "critic": mini}
    dmd2 = partial(write, recipe={"family": "mini", "method": "dmd2"}, roles=everybody, method_config=ladder)
    of_student: dict[str, Any] = {"roles": {"student": mini}, "method_config": {}, "pipeline_config": heun}
    write("finetune", recipe={"family": "mini", "method": "finetune"}, training=steps, **of_student)
    dmd2("dmd2", training={"max_train_steps": 4})
    dmd2("text", training=short | VIDEO | {"data_path": "data/text", "num_latent_t": 3})
    on_wan = {"data_path": "data/wan", **short, "gradient_accumulation_steps": 1}
    write("on_wan", recipe={"family": "wan", "method": "consistency"}, roles={"student": wan, "teacher": wan}, training=on_wan)
    write("resumed")


def more_commands() -> dict[str, list[str]]:
    """Beyond the guide's: every pair of an old plugin with a new one, and a run in two halves."""
    wan, wan_clips = ["--family", "wan", "--model", "models/wan"], ["--num-frames", "5", "--height", "32", "--width", "32"]
    first_half = ["--set", "training.max_train_steps=3"]
    return {
        "list": ["plugins", "list"],
        "show": ["plugins", "show", "fvd-mini"],
        "finetune": ["run", "finetune.yaml"],
        "dmd2": ["run", "dmd2.yaml"],
        "prepare text": ["data", "prepare", "prompts.txt", "--text-only", *MINI, "--out", "data/text"],
        "text": ["run", "text.yaml"],
        "halves 1": ["run", "resumed.yaml", *first_half],
        "halves 2": ["run", "resumed.yaml"],
        "own tests": ["pytest", "-q", "-p", "no:cacheprovider", "tests/test_consistency.py"],
        "wan tiny": ["wan", "tiny", "models/wan"],
        "prepare wan": ["data", "prepare", "clips", *wan, *wan_clips, "--out", "data/wan"],
        "on wan": ["run", "on_wan.yaml"],
        "wan sample": ["sample", "outputs/on_wan", "--prompt", "a", "--sampler", "heun", "--out", "wan.mp4"],
        "ignored key": ["check", "mini.yaml", "--set", "training.validation_sampling_steps=2"],
        "bad format": ["export", "outputs/dmd2", "--to", "diffusers", "--out", "exported-2"],
    }


MINI = ["--family", "mini", "--model", "models/mini"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, clips) -> Workspace:
    site, folder = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("guide")
    install(site)
    shutil.copytree(clips, folder / "clips")
    (folder / "prompts.txt").write_text("a red square\na green square\n", encoding="utf-8")
    (folder / "tests").mkdir()
    (folder / "tests/test_consistency.py").write_text(FILES["fvd-consistency/tests/test_consistency.py"], encoding="utf-8")
    write_run_files(folder)
    commands = {" ".join(words[:2]): words for words in guide_commands()} | more_commands()
    path = os.pathsep.join([str(site), *(entry for entry in sys.path if entry)])
    subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands), "results.json"],
        cwd=folder,
        env=dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1"),
        timeout=300,
        check=True,
    )
    results = json.loads((folder / "results.json").read_text())
    return Workspace(site, folder, {name: Outcome(*result) for name, result in results.items()})


# --- the page ----------------------------------------------------------------------------------------------------------
def test_every_file_of_the_page_is_found():
    assert len(FILES) == len(re.findall(r"^```(?:python|toml|yaml)$", GUIDE, flags=re.MULTILINE))
    assert {path.partition("/")[0] for path in FILES if "/" in path} == set(PLUGINS)


def table(first_header: str) -> list[list[str]]:
    (rows,) = re.findall(rf"^\| {first_header} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", GUIDE, flags=re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows.splitlines()]


def test_the_table_of_primitives_is_the_vocabulary():
    named = {re.match(r"`(\w+)", row[0])[1]: row[1] for row in table("primitive")}  # type: ignore[index]
    assert named == PRIMITIVES
    (paragraph,) = re.findall(r"Validation and `fvd sample` want (.*?)\.", GUIDE, flags=re.DOTALL)
    assert set(re.findall(r"`(\w+)`", paragraph)) == SAMPLING_PRIMITIVES


def test_the_signatures_of_primitives_are_those_of_the_adapter():
    import inspect

    from fvd.adapters import Adapter

    for signature, *_ in table("primitive"):
        name, bracket, arguments = signature.strip("`").partition("(")
        if bracket:
            parameters = [p for p in inspect.signature(getattr(Adapter, name)).parameters if p != "self"]
            assert re.findall(r"\w+", arguments) == parameters, name


def test_the_table_of_hooks_is_complete():
    named = {hook: arguments for row in table("hook") for hook, arguments in re.findall(r"`(fvd_\w+)(?:\(([^)]*)\))?`", row[0])}
    specs = {name: function for name, function in vars(hookspecs).items() if name.startswith("fvd_")}
    assert named == {name: ", ".join(spec.__code__.co_varnames) for name, spec in specs.items()}


# --- found, light, fitting ---------------------------------------------------------------------------------------------
def test_all_three_are_listed_and_usable(workspace):
    rows = {line.split()[0]: line.split() for line in workspace.succeeded("list").splitlines() if line.startswith("  ")}
    assert {name: rows[name][1:4] for name in PLUGINS.values()} == {
        plugin: [distribution, "0.1.0", "ok"] for distribution, plugin in PLUGINS.items()
    }
    assert {row[3] for name, row in rows.items() if name != "PLUGIN"} == {"ok"}
    assert "!" not in rows  # no remark


@pytest.mark.parametrize("module", ["fvd_mini.plugin", "fvd_consistency.plugin", "fvd_extras.plugin"])
def test_their_light_modules_are_light(workspace, module):
    with installed_in(workspace.site):
        assert_light_module(module)


def test_the_matrix_is_as_shown(workspace):
    (block,) = [block for block in CONSOLE if "plugins matrix" in block]
    shown = [line.rstrip() for line in block.splitlines() if not line.startswith("$")]
    assert workspace.succeeded("plugins matrix").splitlines() == shown
    assert "Text of the unconditional branch." in workspace.succeeded("show")


# --- everything runs ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [" ".join(words[:2]) for words in guide_commands()] + [*more_commands()][:-1])
def test_the_command_succeeds(workspace, name):
    workspace.succeeded(name)


@pytest.mark.parametrize(
    ("run", "loss"), [("consistency", "loss"), ("finetune", "loss"), ("dmd2", "critic_loss"), ("on_wan", "loss")]
)
def test_runs_log_losses_and_write_videos(workspace, run, loss):
    rows = workspace.metrics(run)
    last = len(rows)
    assert [row["step"] for row in rows] == list(range(1, last + 1))
    assert all(math.isfinite(row[f"train/{loss}"]) for row in rows)
    assert all(row[f"skipped/{role}"] == 0 for row in rows for role in ("student", "critic") if f"skipped/{role}" in row)
    for step in (0, last):
        videos = list((workspace.folder / f"outputs/{run}/validation/step-{step:08d}").glob("*.mp4"))
        assert [video.name for video in videos] == ["strip.mp4"] or (run == "on_wan" and len(videos) == 2)


def test_text_alone_is_enough_for_a_method_that_starts_from_noise(workspace):
    lock = json.loads((workspace.folder / "outputs/text/run.lock.json").read_text())
    assert lock["latent_shape"] == [3, 3, 8, 8]
    assert len(workspace.metrics("text")) == 3


def test_a_resumed_run_equals_a_straight_one(workspace):
    """The average is the method's own state: without it the losses after step 3 would differ."""

    def logged(run: str) -> list[dict[str, float]]:
        return [{key: row[key] for key in row if not key.startswith("perf/")} for row in workspace.metrics(run)]

    assert logged("resumed") == logged("consistency")
    left, right = (
        read_tensors(workspace.folder / f"outputs/{run}/checkpoints/step-00000006") for run in ("consistency", "resumed")
    )
    assert any(name.startswith("method.average.transformer.") for name in left)
    assert left.keys() == right.keys()
    assert [name for name in left if not left[name].equal(right[name])] == []


def read_tensors(checkpoint: Path) -> dict[str, Any]:
    """Every tensor of a checkpoint, read without fvd's own code."""
    import torch
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(checkpoint / "state")
    entries = reader.read_metadata().state_dict_metadata.items()
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries
        if isinstance(entry, TensorStorageMetadata)
    }
    load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def test_the_tracker_has_every_step_once_and_the_hook_was_called(workspace):
    for run in ("consistency", "resumed"):
        with (workspace.folder / f"outputs/{run}/logs/csv/metrics.csv").open() as file:
            rows = [(int(step), float(value)) for step, name, value in csv.reader(file) if name == "train/loss"]
        assert rows == [(row["step"], row["train/loss"]) for row in workspace.metrics(run)]
        assert (workspace.folder / f"outputs/{run}/outcome.txt").read_text() == "finished at step 6\n"


def test_samples_and_exports_are_there(workspace):
    assert "heun, 4 steps" in workspace.succeeded("sample outputs/consistency")
    assert "heun, 2 steps" in workspace.succeeded("wan sample")
    assert all((workspace.folder / name).stat().st_size > 0 for name in ("sample.mp4", "wan.mp4"))
    trained, original = (workspace.folder / folder / "mini.safetensors" for folder in ("exported", "models/mini"))
    assert trained.read_bytes() != original.read_bytes()
    refusal = workspace.outcomes["bad format"]
    assert (refusal.status, "family mini does not export to 'diffusers'" in refusal.stderr) == (1, True)


def test_the_check_of_the_run_file_is_heard(workspace):
    shown = "".join((workspace.outcomes["ignored key"].stdout, workspace.outcomes["ignored key"].stderr))
    assert "training.validation_sampling_steps: has no effect: the student is sampled on its own ladder" in shown


def test_the_batch_of_the_family_is_what_the_page_says(workspace):
    """Normalised data, the empty prompt for dropped samples, and zeros of the run file's size or else the data's."""
    import torch

    import fvd

    with installed_in(workspace.site):
        from fvd_mini.adapter import MiniAdapter
        from fvd_mini.config import MiniConfig

        def adapter(**about: Any) -> fvd.Adapter:
            return MiniAdapter(fvd.FamilyContext(config=MiniConfig(), components_path="", device=torch.device("cpu"), **about))

        texts = adapter().encode_prompts(["a red square", "a green square"])
        tensors = {"text_embedding": texts, "vae_latent": torch.full((2, 3, 6, 8, 8), 0.75)}
        raw = fvd.RawBatch(tensors, torch.tensor([True, False]), [{}, {}])
        batch = adapter().prepare_batch(raw, latents_source="data")
        assert batch.latents.eq(0.5).all()
        assert torch.equal(batch.cond, torch.stack([adapter().encode_prompts([""])[0], texts[1]]))
        geometry = fvd.VideoGeometry(num_frames=5, height=16, width=24)
        for about, shape in (
            ({}, (2, 3, 6, 8, 8)),
            ({"geometry": geometry}, (2, 3, 5, 2, 3)),
            ({"geometry": geometry, "latent_frames": 4}, (2, 3, 4, 2, 3)),
            ({"geometry": geometry, "latent_frames": 9}, (2, 3, 5, 2, 3)),
        ):
            zeros = adapter(**about).prepare_batch(raw, latents_source="zeros").latents
            assert zeros.shape == shape
            assert not zeros.any()


def test_heun_is_of_second_order(workspace):
    """On dx/dσ = x, from σ = 1 to 0: x shrinks by e. Half the step, a quarter of the error."""
    import torch

    model = SimpleNamespace(num_train_timesteps=1000, predict=lambda x, t: x)
    with installed_in(workspace.site):
        from fvd_extras.heun import sample_heun

        def error(steps: int) -> float:
            timesteps = torch.linspace(1000, 1000 / steps, steps, dtype=torch.float64)
            start = torch.full((1, 1, 1, 1, 1), math.e)
            return abs(float(sample_heun(model, start, scheduler=None, timesteps=timesteps, generators=[])) - 1)

        assert error(8) / error(16) == pytest.approx(4, rel=0.15)


# --- what breaks a plugin ----------------------------------------------------------------------------------------------
HOOK = "import fvd\n\n@fvd.hookimpl\ndef {name}({arguments}):\n    {body}\n"
SAMPLER = "return [fvd.SamplerSpec(name={name!r}, target='nowhere.at:all')]"


def broken_distributions() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """(code, state, plugin, further arguments of fake_dist): a plugin ``x`` is fvd-x with the module fvd_x.plugin."""

    def hook(name: str = "fvd_samplers", arguments: str = "", body: str = "return []") -> dict[str, Any]:
        return {"source": HOOK.format(name=name, arguments=arguments, body=body)}

    yield "P01", "broken", "attribute", {"entry": "fvd_attribute.plugin:PLUGIN", **hook()}
    yield "P02", "incompatible", "future", {"requires": ["fvd-core>=7,<8"], "source": "1 / 0"}
    yield "P03", "broken", "torn", {"source": "import not_there"}
    yield "P04", "broken", "typo", hook("fvd_familys")
    yield "P04", "broken", "unmarked", {"source": "def fvd_samplers():\n    return []\n"}
    yield "P04", "broken", "argument", hook("fvd_run_end", "outcome, weather")
    yield "P05", "broken", "primitive", hook("fvd_methods", body="fvd.RoleNeeds(trainable=True, needs={'predikt'})")
    yield "P05", "broken", "nothing", hook(body="return None")
    yield "P05", "broken", "words", hook(body="return ['ode']")
    yield "P06", "conflict", "mini", {"name": "fvd-rival", **hook()}
    yield "P07", "ok", "second", hook(body=SAMPLER.format(name="heun"))
    yield "P09", "ok", "hollow", hook(body=SAMPLER.format(name="hollow"))
    yield "W01", "slow", "heavy", {"source": "import yaml\n"}


def test_the_table_of_failures_and_the_transcript(workspace, tmp_path):
    rows = {row[0]: row[1] for row in table("code")}
    for _, _, plugin, about in broken_distributions():
        module = f"fvd_{plugin}.plugin" if "name" not in about else "fvd_rival.plugin"
        fake_dist(
            tmp_path,
            about.get("name", f"fvd-{plugin}"),
            entry_points={plugin: about.get("entry", module)},
            modules={module: about["source"]},
            requires=about.get("requires", ()),
        )
    code = (
        "import contextlib, io, json, sys; from fvd.cli.main import main; from fvd.plugins import load_plugins\n"
        "from fvd.errors import PluginError\n"
        "out = io.StringIO()\n"
        "with contextlib.redirect_stdout(out): assert main(['-p', 'no:extras', 'plugins', 'list']) == 0\n"
        "plugins, said = load_plugins(), {}\n"
        "for name in ('hollow', 'nobody', 'heun'):\n"
        "    try: plugins.load('sampler', name)\n"
        "    except PluginError as error: said[name] = str(error)\n"
        "records = {record.distribution: (record.code, record.state) for record in plugins.records}\n"
        "print(json.dumps([out.getvalue(), records, said]))\n"
    )
    path = os.pathsep.join([str(workspace.site), str(tmp_path), *(entry for entry in sys.path if entry)])
    finished = subprocess.run(
        [sys.executable, "-c", code], env=dict(os.environ, PYTHONPATH=path), capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    listing, records, said = json.loads(finished.stdout)

    proven = {"P08", "P10"}
    for code, state, plugin, about in broken_distributions():
        assert records[about.get("name", f"fvd-{plugin}")] == [code if state != "ok" else "", state], plugin
        assert rows[code] == state
        proven.add(code)
    assert records["fvd-mini"] == ["P06", "conflict"]  # nobody wins
    assert {name: re.findall(r"P\d\d", text) for name, text in said.items()} == {
        "hollow": ["P09"], "nobody": ["P08"], "heun": ["P07"],
    }  # fmt: skip
    assert re.search(rf"extras +fvd-extras +0\.1\.0 +{rows['P10']} +P10", listing)
    assert re.search(r"heavy +fvd-heavy +1\.0 +slow .*\n +W01 loads yaml on import", listing)
    assert proven == set(rows)
    (shown,) = [block for block in CONSOLE if "broken" in block]
    squeezed = {" ".join(line.split()) for line in listing.splitlines()}
    assert [line for line in shown.splitlines() if line[0] != "$" and " ".join(line.split()) not in squeezed] == []


def test_nothing_of_this_is_left_behind():
    assert not {"mini", "consistency", "extras"} & {record.name for record in load_plugins().records}
