"""One bad distribution beside the good ones changes nothing of what does not use it: not a byte of output, not a number."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import third_party
import yaml

from fvd.cli.main import main
from fvd.plugins import load_plugins
from fvd.plugins.discovery import WITHOUT_ENTRY_POINTS
from fvd.testing import fake_dist, installed_in

RUN_FILE = {
    "recipe": {"family": "toy", "method": "finetune"},
    "roles": {"student": {"path": "random"}},
    "training": {
        "output_dir": "out",
        "max_train_steps": 2,
        "train_batch_size": 8,
        "learning_rate": 1e-3,
        "log_validation": True,
        "validation_dataset_file": "prompts.txt",
        "validation_sampling_steps": 2,
        "validation_guidance_scale": 1,
    },
}
COMMANDS = (
    ("check", "run.yaml"),
    ("run", "run.yaml"),
    ("sample", "out", "--prompt", "mode 1", "--steps", "2", "--out", "sample.mp4"),
    ("export", "out", "--out", "exported"),
    ("plugins", "show", "finetune"),
)


# --- bad distributions -----------------------------------------------------------------------------------------------
def module(source: str) -> Callable[[Path], None]:
    """A plugin ``bad`` that is this module."""

    def install(site: Path) -> None:
        fake_dist(site, "acme-bad", entry_points={"bad": "acme_bad"}, modules={"acme_bad": source})

    return install


def claims(plugin: str) -> Callable[[Path], None]:
    """A healthy module under the name of another plugin."""

    def install(site: Path) -> None:
        fake_dist(site, "acme-bad", entry_points={plugin: "acme_bad"}, modules={"acme_bad": "import fvd"})

    return install


def damaged(file: str, content: bytes | None) -> Callable[[Path], None]:
    """One file of the metadata is damaged, or not there."""

    def install(site: Path) -> None:
        claims("bad")(site)
        path = site / "acme_bad-1.0.dist-info" / file
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    return install


PROVIDES = """
    import fvd

    @fvd.hookimpl
    def fvd_{kinds}():
        {body}
"""


@dataclass(frozen=True)
class Bad:
    """install: writes it into an empty folder on ``sys.path``. state: of the plugin ``bad``, where it is listed under that
    name. speaks: whether it is asked during a run, so that its failure is told on stderr."""

    install: Callable[[Path], None] | str
    state: str = ""
    speaks: bool = False


BAD = {
    "a nested dependency is missing": Bad("fvd-torn"),
    "for an old core": Bad("fvd-oldcore"),
    "slow": Bad("fvd-slow"),
    "the plugin name of another": Bad(claims("dmd2")),
    "raises on import": Bad(module("1 / 0"), "broken"),
    "a syntax error": Bad(module("def"), "broken"),
    "exits on import": Bad(module("import sys; sys.exit(3)"), "broken"),
    "an entry point that is no module": Bad(
        lambda site: fake_dist(site, "acme-bad", entry_points={"bad": "acme bad::x"}) and None, "broken"
    ),
    "a module that is not there": Bad(
        lambda site: fake_dist(site, "acme-bad", entry_points={"bad": "acme_bad"}) and None, "broken"
    ),
    "an unknown hook": Bad(module(PROVIDES.format(kinds="familys", body="return []")), "broken"),
    "a hook that raises": Bad(module(PROVIDES.format(kinds="families", body="raise RuntimeError('x')")), "broken"),
    "a hook that returns a string": Bad(module(PROVIDES.format(kinds="methods", body="return 'dmd2'")), "broken"),
    "the plugin name of the toys": Bad(claims("toy")),
    "the names of core's components": Bad(
        module(
            PROVIDES.format(kinds="samplers", body="return [fvd.SamplerSpec(name=n, target='a:b') for n in ('ode', 'sde')]")
            + PROVIDES.format(kinds="validators", body="return [fvd.ValidatorSpec(name='video', target='a:b')]")
            + PROVIDES.format(
                kinds="dataset_kinds",
                body="return [fvd.DatasetKindSpec(name=n, target='a:b') for n in ('toy', 'toy_noise', 'parquet')]",
            )
            + PROVIDES.format(
                kinds="trackers",
                body="return [fvd.TrackerSpec(name=n, target='a:b') for n in ('tensorboard', 'wandb')]",
            )
        ),
        "ok",
    ),
    "a panic on import": Bad(module("class Panic(BaseException): pass\nraise Panic"), "broken"),
    "a panic in a hook": Bad(
        module("class Panic(BaseException): pass\nimport fvd\n@fvd.hookimpl\ndef fvd_methods(): raise Panic\n"),
        "broken",
    ),
    "a panic in a notification": Bad(
        module("class Panic(BaseException): pass\nimport fvd\n@fvd.hookimpl\ndef fvd_run_start(run): raise Panic\n"),
        "ok",
        speaks=True,
    ),
    "an exception that cannot be shown": Bad(
        module("class Odd(Exception):\n    def __str__(self): raise self\nraise Odd"), "broken"
    ),
    "a module that replaces itself": Bad(module("import sys\nsys.modules[__name__] = object()"), "broken"),
    "hook results that raise": Bad(
        module(
            "import fvd\nclass Odd(list):\n    def __iter__(self): raise RuntimeError\n"
            "@fvd.hookimpl\ndef fvd_methods(): return Odd([1])\n"
        ),
        "broken",
    ),
    "a descriptor that was never made": Bad(
        module(
            "import fvd\nclass Odd(fvd.MethodSpec):\n    def __init__(self): pass\n"
            "@fvd.hookimpl\ndef fvd_methods(): return [Odd(), object.__new__(fvd.MethodSpec)]\n"
        ),
        "broken",
    ),
    "a requirement that cannot be evaluated": Bad(
        lambda site: (
            fake_dist(
                site,
                "acme-bad",
                entry_points={"bad": "acme_bad"},
                modules={"acme_bad": "import fvd"},
                requires=['fvd-core; python_version ~= "x"'],
            )
            and None
        ),
        "incompatible",
    ),
    "an error in every run file": Bad(
        module("import fvd\n@fvd.hookimpl\ndef fvd_check_config(ctx): return [fvd.Problem(message='no')]"),
        "ok",
        speaks=True,
    ),
    "output everywhere": Bad(
        module(
            "import fvd\nprint('import')\n@fvd.hookimpl\ndef fvd_check_config(ctx):\n    print('acme-bad')\n    return []\n"
        ),
        "ok",
        speaks=True,
    ),
    "a method of a taken name": Bad(
        module(
            PROVIDES.format(
                kinds="methods",
                body="return [fvd.MethodSpec(name='dmd2', target='a:b', roles={'student': fvd.RoleNeeds(trainable=True)})]",
            )
        ),
        "ok",
    ),
    "a target that is not there": Bad(
        module(PROVIDES.format(kinds="trackers", body="return [fvd.TrackerSpec(name='bad', target='nowhere:Bad')]")), "ok"
    ),
    "no METADATA": Bad(damaged("METADATA", None), "broken"),
    "METADATA of random bytes": Bad(damaged("METADATA", bytes(range(256))), "broken"),
    "a notification that raises": Bad(
        module("import fvd\n@fvd.hookimpl\ndef fvd_step_end(run, step):\n    raise RuntimeError('x')"), "ok", speaks=True
    ),
    "a check that raises": Bad(
        module("import fvd\n@fvd.hookimpl\ndef fvd_check_config(ctx):\n    raise RuntimeError('x')"), "ok", speaks=True
    ),
}


# --- what is observed ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Observed:
    statuses: tuple[int, ...]
    stdout: str
    stderr: str
    files: dict[str, bytes | str]


TIMES = re.compile(r"[\d.e-]+ (s/it|ms|s)\b|eta \S+|\d+:\d\d:\d\d")
NOT_COMPARED = {
    "fvd.log",  # what stderr shows, with the time of day
    ".metadata",  # of a checkpoint: which tensor lies where, with a random number for each save
}


def observe(folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Observed:
    """What the commands print and write, in an empty folder of always the same name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("run.yaml").write_text(yaml.safe_dump(RUN_FILE))
    Path("prompts.txt").write_text("mode 2\n")
    capfd.readouterr()
    statuses = tuple(main(list(command)) for command in COMMANDS)
    out, err = (TIMES.sub("TIME", text) for text in capfd.readouterr())
    written = [path for path in sorted(Path().rglob("*")) if path.is_file() and path.name not in NOT_COMPARED]
    return Observed(statuses, out, err, {str(path): content(path) for path in written})


def content(path: Path) -> bytes | str:
    if path.name == "run.lock.json":  # somebody may edit an editable checkout while this runs
        return re.sub('"(sha256|commit|dirty)": .*', "", path.read_text())
    if path.name != "metrics.jsonl":
        return path.read_bytes()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return json.dumps([{name: value for name, value in row.items() if not name.startswith("perf/")} for row in rows])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("isolation") / "here"


@pytest.fixture(scope="module")
def observed_once() -> dict[str, Observed]:
    return {}


@pytest.fixture
def good(observed_once, workplace, capfd, monkeypatch) -> Observed:
    """What happens without any bad distribution."""
    if not observed_once:
        first = observe(workplace, capfd, monkeypatch)
        assert first.statuses == (0,) * len(COMMANDS), first.stderr
        assert first == observe(workplace, capfd, monkeypatch)  # else nothing could be said below
        observed_once["good"] = first
    return observed_once["good"]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_distribution_changes_nothing(name, good, workplace, tmp_path, capfd, monkeypatch):
    bad = BAD[name]
    with ExitStack() as stack:
        site = tmp_path / "site"
        if isinstance(bad.install, str):
            stack.enter_context(third_party.installed(site, bad.install))
        else:
            site.mkdir()
            stack.enter_context(installed_in(site))
            bad.install(site)
        states = {record.name: record.state for record in load_plugins().records}
        assert states.get("bad", "") == bad.state
        observed = observe(workplace, capfd, monkeypatch)
    sys.modules.pop("acme_bad", None)  # what replaces itself is no module that `installed_in` would know
    assert observed.statuses == good.statuses
    if bad.speaks:
        assert "acme-bad" in observed.stdout + observed.stderr
    else:
        assert observed.stdout == good.stdout
        assert observed.stderr == good.stderr
    assert observed.files.keys() == good.files.keys()
    for path, expected in good.files.items():
        assert observed.files[path] == expected, path


DAMAGED_LISTS = {
    "no value": b"[fvd.plugins]\nmm\n",
    "no text": b"[fvd.plugins]\nmm = \xff\n",
    "random bytes": bytes(range(256)),
}


def in_a_new_process(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Libraries that look at all entry points do so once in a process."""
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    variables = {name: value for name, value in os.environ.items() if name not in WITHOUT_ENTRY_POINTS}
    environment = {**variables, "PYTHONPATH": path}
    command = [sys.executable, "-m", "fvd.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("name", DAMAGED_LISTS)
def test_a_list_of_entry_points_that_cannot_be_read_stops_nobody(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    site = tmp_path / "site"
    site.mkdir()
    damaged("entry_points.txt", DAMAGED_LISTS[name])(site)
    Path("run.yaml").write_text(yaml.safe_dump(RUN_FILE))
    Path("prompts.txt").write_text("mode 2\n")
    checked = in_a_new_process(site, "check", "run.yaml")
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "run.yaml: ok\n", "")
    listed = in_a_new_process(site, "plugins", "list", "--json")
    states = {record["name"]: record["code"] for record in json.loads(listed.stdout)["plugins"]}
    assert states == {record.name: None for record in load_plugins().records} | (
        {} if name == "random bytes" else {"acme-bad": "P01"}
    )
    if name == "no value":
        doctor = in_a_new_process(site, "plugins", "doctor")
        assert doctor.stderr == ""
        assert "acme-bad" in doctor.stdout
        assert in_a_new_process(site, "plugins", "deps", "run.yaml").stderr == ""
        run = in_a_new_process(site, "run", "run.yaml")  # torch.distributed reads all lists, and has no switch
        assert run.returncode == 1
        assert "pip install --force-reinstall --no-deps acme-bad" in run.stderr
        assert "Traceback" not in run.stderr


def test_a_plugin_of_pydantic_is_not_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(RUN_FILE))
    Path("prompts.txt").write_text("mode 2\n")
    site = tmp_path / "site"
    fake_dist(site, "acme-bad", modules={"acme_bad": "1 / 0"})
    (site / "acme_bad-1.0.dist-info/entry_points.txt").write_text("[pydantic]\nbad = acme_bad:plugin\n")
    assert in_a_new_process(site, "check", "run.yaml").stdout == "run.yaml: ok\n"
    monkeypatch.setenv("PYDANTIC_DISABLE_PLUGINS", "nobody")  # who sets it is not overruled
    monkeypatch.setattr(sys.modules[__name__], "WITHOUT_ENTRY_POINTS", {})
    assert "ZeroDivisionError" in in_a_new_process(site, "check", "run.yaml").stderr


def test_output_of_plugins_is_not_in_that_for_tools(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    site = tmp_path / "site"
    config = "import fvd\nprint('acme prints')\nclass Config(fvd.MethodConfig): pass\nclass Method: pass"
    plugin = """
        import fvd

        @fvd.hookimpl
        def fvd_methods():
            roles = {"student": fvd.RoleNeeds(trainable=True)}
            return [fvd.MethodSpec(name="loud", target="acme_loud:Method", config="acme_loud:Config", roles=roles)]

        @fvd.hookimpl
        def fvd_check_config(ctx):
            print("acme checks")
            return []
    """
    fake_dist(site, "acme-loud", entry_points={"loud": "acme_plugin"}, modules={"acme_plugin": plugin, "acme_loud": config})
    document = {
        **RUN_FILE,
        "recipe": {"family": "toy", "method": "loud"},
        "training": {"output_dir": "out", "max_train_steps": 1},
    }
    Path("run.yaml").write_text(yaml.safe_dump(document))
    with installed_in(site):
        capfd.readouterr()
        assert main(["check", "run.yaml", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["ok"]
    assert "acme prints" in err
    assert "acme checks" in err
