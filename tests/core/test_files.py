"""Files and folders appear whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fvd.errors import FvdError
from fvd.files import folder_written_aside, remove_folder, remove_folder_leftovers, written_aside


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def target(tmp_path) -> Path:
    folder = tmp_path / "target"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/old.txt").write_text("old")
    return folder


def test_a_folder_takes_its_place_when_it_is_whole(tmp_path):
    target = tmp_path / "a/b"
    with folder_written_aside(target) as aside:
        (aside / "deep").mkdir()
        (aside / "deep/new.txt").write_text("new")
        assert not target.exists()
    assert content(tmp_path) == {"a/b/deep/new.txt": "new"}


def test_it_replaces_what_was_there(tmp_path, target):
    with folder_written_aside(target) as aside:
        (aside / "new.txt").write_text("new")
        assert content(target) == {"deep/old.txt": "old"}
    assert content(tmp_path) == {"target/new.txt": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("failure", [RuntimeError("a bug"), KeyboardInterrupt(), FvdError("for the user")], ids=type)
def test_an_error_inside_leaves_the_target_as_it_was(tmp_path, target, failure):
    def write(folder: Path) -> None:
        with folder_written_aside(folder) as aside:
            (aside / "half.txt").write_text("half")
            raise failure

    with pytest.raises(type(failure)) as caught:
        write(target)
    assert caught.value is failure
    with pytest.raises(type(failure)):
        write(tmp_path / "fresh")
    assert content(tmp_path) == {"target/deep/old.txt": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_system_that_refuses_is_told_to_the_user(tmp_path, target):
    def refuse() -> None:
        with folder_written_aside(target):
            raise OSError(28, "No space left on device")

    with pytest.raises(FvdError, match=r"cannot write .*target: No space left on device"):
        refuse()
    assert content(tmp_path) == {"target/deep/old.txt": "old"}
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FvdError, match="cannot write"), folder_written_aside(tmp_path / "file/sub"):
        pass


def test_a_name_that_cannot_be_taken_leaves_the_target_as_it_was(tmp_path, target, monkeypatch):
    """The last moment at which the system can refuse: the old folder has gone aside, the new one has not come."""
    rename = Path.rename

    def refuse(self, new):
        if self.name == ".target.writing":
            raise OSError(28, "No space left on device")
        return rename(self, new)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(FvdError, match="cannot write"), folder_written_aside(target) as aside:
        (aside / "new.txt").write_text("new")
    assert content(tmp_path) == {"target/deep/old.txt": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_what_an_earlier_kill_left_does_not_get_into_the_new_folder(tmp_path, target):
    for name in (".target.writing", ".target.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "left.txt").write_text("left")
    with folder_written_aside(target) as aside:
        (aside / "new.txt").write_text("new")
    assert content(tmp_path) == {"target/new.txt": "new"}


KILLED = """
import os, signal
from pathlib import Path
from fvd.files import folder_written_aside
with folder_written_aside(Path({target!r})) as aside:
    (aside / "half.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_the_target_and_leftovers_that_can_be_removed(tmp_path, target):
    killed = subprocess.run([sys.executable, "-c", KILLED.format(target=str(target))], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert content(target) == {"deep/old.txt": "old"}
    assert len(list(tmp_path.iterdir())) == 2  # it really left something
    (tmp_path / ".other.deleting").mkdir()
    (tmp_path / ".hidden").mkdir()
    remove_folder_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "target"]
    remove_folder_leftovers(tmp_path / "nowhere")


def test_a_removed_folder_has_no_half_of_it_under_its_name(tmp_path, target, monkeypatch):
    """Killed while it deletes: the name is gone first."""

    def die(folder, *args, **kwargs):
        assert not target.exists()
        assert Path(folder).exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fvd.files.shutil.rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(target)
    assert not target.exists()
    remove_folder_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_everything_is_on_the_disk_before_the_name_is(target, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr("fvd.files.os.fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), real(descriptor)))
    with folder_written_aside(target) as aside:
        (aside / "deep").mkdir()
        (aside / "deep/new.txt").write_text("new")
        nodes = {path.stat().st_ino for path in (aside, aside / "deep", aside / "deep/new.txt")}
    assert nodes <= set(synced)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep/file.txt"
    with written_aside(path) as file:
        file.write(b"first")
        assert not path.exists()

    def fail() -> None:
        with written_aside(path) as file:
            file.write(b"second")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]
