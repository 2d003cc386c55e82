"""One bad distribution beside the good ones changes nothing of what does not use it: not a byte of output, not a number."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import third_party
import yaml

from fvd.cli.main import main
from fvd.plugins import load_plugins
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
    "entry_points.txt of random bytes": Bad(damaged("entry_points.txt", bytes(range(256)))),
    "entry_points.txt that is no ini file": Bad(damaged("entry_points.txt", b"[fvd.plugins\nbad\n= acme_bad\n")),
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
    assert observed.statuses == good.statuses
    if bad.speaks:
        assert "acme-bad" in observed.stdout + observed.stderr
    else:
        assert observed.stdout == good.stdout
        assert observed.stderr == good.stderr
    assert observed.files.keys() == good.files.keys()
    for path, expected in good.files.items():
        assert observed.files[path] == expected, path
