"""Locks of real runs: in the run directory and the checkpoints, `--locked`, and resuming in another environment."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import pytest

from fvd.cli.main import main
from fvd.config.load import load_run_file
from fvd.plugins.lock import read_lock
from fvd.rundir import with_absolute_paths
from fvd.testing import fake_dist, installed_in, loaded_modules

DIARY = {
    "acme_diary.plugin": """
        import fvd

        @fvd.hookimpl
        def fvd_trackers():
            return [fvd.TrackerSpec(name="diary", target="acme_diary.diary:Diary")]
    """,
    "acme_diary.diary": """
        import fvd

        class Diary(fvd.Tracker):
            def __init__(self, context): pass
            def log(self, metrics, step): pass
    """,
}


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    with installed_in(folder):
        yield folder


def install_diary(site: Path, version: str, **more: str) -> None:
    for old in site.glob("*.dist-info"):
        old.rename(site.parent / f"{old.name}-was")
    modules = {**DIARY, **{f"acme_diary.{name}": source for name, source in more.items()}}
    fake_dist(site, "acme-diary", version, entry_points={"diary": "acme_diary.plugin"}, modules=modules)


@pytest.fixture
def run_file(tmp_path, site, write_run_file) -> Path:
    """Of a run that has made two steps."""
    install_diary(site, "1.0")
    path = write_run_file("finetune", output_dir=tmp_path / "out", training={"max_train_steps": 2, "trackers": ["diary"]})
    assert main(["run", str(path)]) == 0
    return path


LONGER = ["--set", "training.max_train_steps=3"]


def steps_of(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def refused(capfd, *arguments: str) -> str:
    capfd.readouterr()
    assert main(["run", *arguments]) == 1
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert "role student" not in said  # no weights were loaded
    return said


# --- where it lies ---------------------------------------------------------------------------------------------------
def test_a_run_and_its_checkpoints_say_what_they_were_made_with(tmp_path, run_file):
    out = tmp_path / "out"
    lock = read_lock(out / "run.lock.json")
    assert read_lock(out / "checkpoints/step-00000002/run.lock.json") == lock
    used = {entry.distribution: entry.components for entry in lock.plugins}
    assert used == {
        "acme-diary": ("tracker:diary",),
        "fvd-core": ("dataset_kind:parquet", "sampler:ode", "validator:video"),
        "fvd-finetune": ("method:finetune",),
        "fvd-wan": ("family:wan",),
    }
    assert lock.run_file == json.loads(json.dumps(with_absolute_paths(load_run_file(run_file).require().as_document())))
    assert lock.latent_shape == (16, 3, 8, 8)


# --- --locked --------------------------------------------------------------------------------------------------------
def test_locked_continues_what_has_not_changed(tmp_path, run_file):
    assert main(["run", str(run_file), "--locked", *LONGER]) == 0
    assert steps_of(tmp_path / "out") == [1, 2, 3]


@pytest.mark.parametrize("place", ["out/run.lock.json", "out", "out/checkpoints/step-00000002"])
def test_locked_makes_a_run_again_in_another_folder(tmp_path, run_file, place):
    again = ["--set", f"training.output_dir={tmp_path / 'again'}"]
    assert main(["run", str(run_file), "--locked", str(tmp_path / place), *again]) == 0
    values = [
        [{key: value for key, value in json.loads(line).items() if key.startswith(("train/", "grad_norm/"))} for line in lines]
        for lines in ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("out", "again"))
    ]
    assert values[0] == values[1]
    assert values[0][0]


def test_locked_refuses_another_version_and_another_run_file(tmp_path, site, run_file, capfd):
    install_diary(site, "2.0")
    said = refused(capfd, str(run_file), "--locked", "--set", "training.seed=5", *LONGER)
    assert "[P12]" in said
    (plugin,) = [line.split() for line in said.splitlines() if "(acme-diary)" in line]
    assert plugin[:4] == ["plugin", "diary", "(acme-diary)", "1.0"]
    assert plugin[6] == "2.0"
    (seed,) = [line.split() for line in said.splitlines() if "training.seed" in line]
    assert seed == ["run", "file", "training.seed", "0", "5"]
    assert "pip install acme-diary==1.0" in said
    assert "max_train_steps" not in said  # it may change
    assert steps_of(tmp_path / "out") == [1, 2]


def test_locked_refuses_an_edited_helper_of_a_plugin_file(tmp_path, write_run_file, capfd):
    (tmp_path / "acme_notebook.py").write_text(
        "import fvd\nimport acme_notebook_pages\n\n@fvd.hookimpl\ndef fvd_trackers():\n"
        "    return [fvd.TrackerSpec(name='notebook', target='acme_notebook_pages:Notebook')]\n"
    )
    helper = tmp_path / "acme_notebook_pages.py"
    helper.write_text(textwrap.dedent(DIARY["acme_diary.diary"]).replace("Diary", "Notebook"))
    changes = {"max_train_steps": 1, "trackers": ["notebook"]}
    run_file = write_run_file("finetune", output_dir=tmp_path / "out", training=changes)
    command = [str(run_file), "--plugin", str(tmp_path / "acme_notebook.py")]
    try:
        assert main(["run", *command]) == 0
        assert main(["run", *command, "--locked"]) == 0  # there is nothing to do
        helper.write_text(helper.read_text() + "# edited\n")
        assert "plugin acme_notebook (local)" in refused(capfd, *command, "--locked")
    finally:
        sys.path.remove(str(tmp_path))
        for name in ("acme_notebook", "acme_notebook_pages"):
            sys.modules.pop(name, None)


def test_locked_refuses_before_torch_is_loaded(tmp_path, site, run_file):
    install_diary(site, "2.0")
    arguments = ["run", str(run_file), "--locked", *LONGER]
    assert "torch" not in loaded_modules(f"from fvd.cli.main import main; assert main({arguments!r}) == 1")


def test_locked_needs_a_lock_file(tmp_path, run_file, capfd):
    nowhere = tmp_path / "nowhere"
    said = refused(capfd, str(run_file), "--locked", "--set", f"training.output_dir={nowhere}")
    assert f"there is no lock file {nowhere}/run.lock.json [P12]" in said
    assert not nowhere.exists()
    assert main(["run", "--locked", str(run_file)]) == 2
    assert "name it before --locked" in capfd.readouterr().err


# --- resuming --------------------------------------------------------------------------------------------------------
def test_resuming_in_another_environment_warns_and_goes_on(tmp_path, site, run_file, capfd):
    install_diary(site, "2.0")
    assert main(["run", str(run_file), *LONGER]) == 0
    assert steps_of(tmp_path / "out") == [1, 2, 3]
    log = (tmp_path / "out/logs/fvd.log").read_text()
    (_, warning) = log.split("WARNING")
    assert "not the environment that the checkpoint was made in" in warning
    rows = [line for line in warning.splitlines() if " -> " in line]
    assert len(rows) == 1
    assert "plugin diary (acme-diary)   1.0" in rows[0]
    assert "->   2.0" in rows[0]
    # the new lock is that of the run as it goes on
    for folder, version in (("step-00000002", "1.0"), ("step-00000003", "2.0")):
        (entry,) = [
            entry
            for entry in read_lock(tmp_path / "out/checkpoints" / folder / "run.lock.json").plugins
            if entry.distribution == "acme-diary"
        ]
        assert entry.version == version


def test_resuming_in_the_same_environment_is_silent(tmp_path, site, run_file):
    fake_dist(site, "acme-unrelated", entry_points={"unrelated": "acme_unrelated"}, modules={"acme_unrelated": "import fvd"})
    assert main(["run", str(run_file), *LONGER]) == 0
    assert "WARNING" not in (tmp_path / "out/logs/fvd.log").read_text()


def test_a_checkpoint_without_a_whole_lock_still_continues(tmp_path, run_file):
    lock_file = tmp_path / "out/checkpoints/step-00000002/run.lock.json"
    lock_file.write_text("{torn")
    assert main(["run", str(run_file), *LONGER]) == 0
    assert "is not a lock file" in (tmp_path / "out/logs/fvd.log").read_text()
    (tmp_path / "out/checkpoints/step-00000003/run.lock.json").unlink()
    assert main(["run", str(run_file), "--set", "training.max_train_steps=4"]) == 0
    assert steps_of(tmp_path / "out") == [1, 2, 3, 4]
