"""Locks: what is in one, what its hashes cover, and what counts as a difference."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

import fvd
from fvd.errors import PluginError
from fvd.plugins import PluginRecord, load_plugins
from fvd.plugins.beside import files_beside
from fvd.plugins.drift import changed_environment, digest, refuse_drift
from fvd.plugins.lock import Lock, LockedPlugin, lock_again, make_lock, read_lock
from fvd.plugins.sources import Source, hash_files
from fvd.testing import fake_dist, installed_in, loaded_modules

RUN_FILE = {"recipe": {"family": "wan", "method": "m"}, "training": {"seed": 0, "output_dir": "/out", "data_path": {"/a": 1}}}

SAMPLER = """
    import fvd

    @fvd.hookimpl
    def fvd_samplers():
        return [fvd.SamplerSpec(name={name!r}, target="{package}.loop:sample")]
"""


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    with installed_in(folder):
        yield folder


def install(site: Path, name: str, version: str = "1.0", loop: str = "VALUE = 1\n") -> Path:
    """A distribution ``acme-NAME`` with a sampler NAME; returns its dist-info folder."""
    package = f"acme_{name}"
    modules = {f"{package}.plugin": SAMPLER.format(name=name, package=package), f"{package}.loop": loop}
    for old in site.glob(f"{package}-*.dist-info"):
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    fake_dist(site, f"acme-{name}", version, entry_points={name: f"{package}.plugin"}, modules=modules)
    return site / f"{package}-{version}.dist-info"


def lock_of(*samplers: str, run_file: dict = RUN_FILE) -> Lock:
    plugins = load_plugins()
    return make_lock(plugins, [plugins.spec("sampler", name) for name in samplers], run_file)


def entry_of(lock: Lock, distribution: str) -> LockedPlugin:
    (entry,) = [entry for entry in lock.plugins if entry.distribution == distribution]
    return entry


# --- what is in it ---------------------------------------------------------------------------------------------------
def test_a_lock_names_the_plugins_that_are_used_and_core(site):
    install(site, "loop")
    lock = lock_of("loop", "ode")
    assert [(entry.distribution, entry.name, entry.version, entry.components) for entry in lock.plugins] == [
        ("acme-loop", "loop", "1.0", ("sampler:loop",)),
        ("fvd-core", "core", fvd.__version__, ("sampler:ode",)),
    ]
    assert lock.fvd_core == fvd.__version__
    assert [entry.distribution for entry in lock_of().plugins] == ["fvd-core"]


def test_an_unrelated_plugin_changes_nothing(site):
    install(site, "loop")
    before = lock_of("loop")
    install(site, "other")
    assert lock_of("loop") == before
    assert lock_of("loop").as_json() == before.as_json()


def test_a_lock_has_the_versions_of_what_plugins_need(site):
    """What a plugin declares, and what an extra of a requirement brings; not what is only installed."""
    for name, requires in (("a", ()), ("b", ("acme-c; extra == 'fast'", "acme-d; extra == 'slow'", "acme-e")), ("c", ())):
        fake_dist(site, f"acme-{name}", "1.0", requires=requires)
    install(site, "loop")
    requires = ["acme_A>=0", "acme-b[fast]", "acme-nowhere", "fvd-core>=0", "torch", "acme-d; python_version < '3'"]
    modules = {"acme_loop.plugin": SAMPLER.format(name="loop", package="acme_loop")}
    fake_dist(site, "acme-loop", "1.0", entry_points={"loop": "acme_loop.plugin"}, modules=modules, requires=requires)
    lock = lock_of("loop")
    assert lock.packages == {"acme-a": "1.0", "acme-b": "1.0", "acme-c": "1.0"}
    fake_dist(site, "acme-unrelated", "1.0")
    assert lock_of("loop") == lock
    (site / "acme_a-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: acme-a\nVersion: 1.1\n")
    with pytest.raises(PluginError) as caught:
        refuse_drift(site, lock, lock_again(lock, load_plugins(), RUN_FILE))
    assert [line.split() for line in caught.value.message.splitlines()[2:]] == [["package", "acme-a", "1.0", "1.1"]]
    assert caught.value.cure.startswith("python -m pip install acme-a==1.0\n")


def test_a_lock_that_is_read_is_the_one_that_was_written(site, tmp_path):
    install(site, "loop")
    lock = replace(lock_of("loop", run_file={**RUN_FILE, "roles": {"student": {"path": "深"}}}), latent_shape=(16, 2, 4, 4))
    path = tmp_path / "run.lock.json"
    path.write_text(lock.as_json(), encoding="utf-8")
    assert read_lock(path) == lock
    document = json.loads(path.read_text(encoding="utf-8"))
    canonical = json.dumps(document["run_file"], sort_keys=True).encode()
    assert document["run_file_sha256"] == hashlib.sha256(canonical).hexdigest()


@pytest.mark.parametrize("text", ["", "[]", "{}", "{torn", '{"format": 9}', '{"format": 1, "plugins": [3]}'])
def test_what_is_no_lock_is_refused(tmp_path, text):
    path = tmp_path / "run.lock.json"
    path.write_text(text)
    with pytest.raises(PluginError, match=r"run\.lock\.json is not a lock file .* \[P12\]"):
        read_lock(path)
    with pytest.raises(PluginError, match=r"there is no lock file .*nowhere.json \[P12\]"):
        read_lock(tmp_path / "nowhere.json")


def test_locks_are_made_and_compared_without_torch():
    loaded = loaded_modules("import fvd.plugins.lock, fvd.plugins.drift, fvd.agreement, fvd.cli.run")
    assert not loaded & {"torch", "numpy", "pydantic", "yaml"}


# --- hashes ----------------------------------------------------------------------------------------------------------
def test_the_hash_covers_names_and_content_of_the_files(site):
    install(site, "loop")
    package = site / "acme_loop"
    files = {f"acme_loop/{path.name}": path.read_bytes() for path in package.glob("*.py")}
    assert len(files) == 3
    lines = [f"{name}\0{hashlib.sha256(content).hexdigest()}\n" for name, content in sorted(files.items())]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()

    def current() -> str:
        return entry_of(lock_of("loop"), "acme-loop").sha256

    assert current() == expected
    for leftover in ("__pycache__/loop.cpython-311.pyc", ".loop.py.swp", "loop.py~"):
        (package / leftover).parent.mkdir(exist_ok=True)
        (package / leftover).write_bytes(b"x")
    assert current() == expected
    (package / "table.json").write_text("{}")
    with_table = current()
    (package / "table.json").write_text("[]")
    assert len({expected, with_table, current()}) == 3
    (package / "table.json").rename(package / "other.json")
    assert current() not in (expected, with_table)


def test_a_wheel_and_the_folder_it_was_built_from_have_one_hash(site):
    """A wheel has a RECORD; an editable installation, and a folder on the path, have not."""
    metadata = install(site, "loop")
    without = entry_of(lock_of("loop"), "acme-loop").sha256
    own = [f"acme_loop/{name}.py" for name in ("__init__", "loop", "plugin")]
    installed = ["acme_loop-1.0.dist-info/METADATA", "../../bin/loop", "acme_loop/__pycache__/loop.cpython-311.pyc"]
    (metadata / "RECORD").write_text("".join(f"{name},,\n" for name in own + installed))
    assert entry_of(lock_of("loop"), "acme-loop").sha256 == without
    (metadata / "RECORD").write_text("_editable_impl_loop.pth,,\n__editable___loop_finder.py,,\n")
    assert entry_of(lock_of("loop"), "acme-loop").sha256 == without
    # a wheel that brings a second package: its files count as well
    fake_dist(site, "acme-loop", modules={"acme_kernels.fast": "FAST = True\n"})
    install(site, "loop")
    (metadata / "RECORD").write_text("".join(f"{name},,\n" for name in [*own, "acme_kernels/fast.py"]))
    assert entry_of(lock_of("loop"), "acme-loop").sha256 != without
    # one that was edited after it was installed is not what RECORD says
    (metadata / "RECORD").write_text("".join(f"{name},sha256=abc,1\n" for name in own))
    (site / "acme_loop/loop.py").write_text("VALUE = 2\n")
    assert entry_of(lock_of("loop"), "acme-loop").sha256 != without


# --- sources ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("direct_url", "source"),
    [
        (None, Source(kind="index")),
        ("{torn", Source(kind="index")),
        ('{"dir_info": {}, "url": "file:///src/my%20loop"}', Source(kind="folder", location="/src/my loop")),
        ('{"archive_info": {}, "url": "file:///loop.whl"}', Source(kind="archive", location="file:///loop.whl")),
        (
            '{"vcs_info": {"vcs": "git", "commit_id": "3f2c1d0"}, "url": "ssh://host/loop.git"}',
            Source(kind="vcs", location="ssh://host/loop.git", commit="3f2c1d0"),
        ),
        ('{"dir_info": {}, "url": "http://[bad"}', Source(kind="unknown")),
        ('{"dir_info": {"editable": true}, "url": "http://[bad"}', Source(kind="unknown")),
        (
            '{"dir_info": {"editable": true}, "url": "file:///nowhere%00/loop"}',
            Source(kind="editable", location="/nowhere\0/loop"),
        ),
        (
            '{"dir_info": {"editable": true}, "url": "file:///nowhere/loop"}',
            Source(kind="editable", location="/nowhere/loop"),
        ),
    ],
    ids=["index", "damaged", "folder", "archive", "vcs", "no URL", "editable, no URL", "no path", "editable without git"],
)
def test_where_a_plugin_comes_from(site, direct_url, source):
    metadata = install(site, "loop")
    if direct_url:
        (metadata / "direct_url.json").write_text(direct_url)
    assert entry_of(lock_of("loop"), "acme-loop").source == source


def test_an_editable_checkout_has_a_commit_and_may_be_dirty(site, tmp_path):
    metadata = install(site, "loop")
    checkout = tmp_path / "checkout/plugins/loop"
    checkout.mkdir(parents=True)
    (checkout / "loop.py").write_text("1")

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(checkout), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    subprocess.run(["git", "init", "-q", str(tmp_path / "checkout")], check=True)
    git("add", ".")
    git("commit", "-q", "-m", "first")
    (metadata / "direct_url.json").write_text(json.dumps({"dir_info": {"editable": True}, "url": checkout.as_uri()}))

    def source() -> Source:
        return entry_of(lock_of("loop"), "acme-loop").source

    clean = Source(kind="editable", location=str(checkout), commit=git("rev-parse", "HEAD"), dirty=False)
    assert source() == clean
    (tmp_path / "checkout/elsewhere.txt").write_text("not the plugin's")
    assert source() == clean
    (checkout / "new.py").write_text("2")
    assert source() == replace(clean, dirty=True)
    assert str(source()) == f"editable {checkout} @ {clean.commit[:12]} with uncommitted changes"


def test_a_plugin_that_is_one_file(tmp_path):
    file = tmp_path / "acme_file.py"
    file.write_text(textwrap.dedent(SAMPLER.format(name="loop", package="acme_file")))
    try:
        plugins = load_plugins(files=[str(file)])
        entry = entry_of(make_lock(plugins, [plugins.spec("sampler", "loop")], RUN_FILE), "local")
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("acme_file", None)
    assert entry.source == Source(kind="file", location=str(file))
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    assert entry.sha256 == hashlib.sha256(f"acme_file.py\0{content}\n".encode()).hexdigest()


def test_the_hash_of_a_file_covers_what_it_uses_of_its_folder(tmp_path):
    """Imports, also inside functions and through helpers, and targets; neither strangers nor other files of the folder."""
    file = tmp_path / "acme_file.py"
    file.write_text(
        "import math, os.path, acme_tables\n"
        "from acme_parts import noise\n"
        "TARGET = 'acme_late:Method'\n"
        "def build():\n    import acme_inside\n"
    )
    helpers = {
        "acme_tables.py": "import acme_file",  # a circle
        "acme_parts/__init__.py": "",
        "acme_parts/noise.py": "from . import levels\nfrom .deep.sums import add",
        "acme_parts/levels.py": "",
        "acme_parts/deep/sums.py": "from ..levels import top",
        "acme_late.py": "(",  # no Python, and covered all the same
        "acme_inside.py": "",
    }
    others = {"acme_unused.py": "", "acme_parts/unused.py": "", "math.txt": ""}
    for name, text in {**helpers, **others}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    record = PluginRecord(name="acme_file", distribution="local", version="-", module="acme_file", file=str(file))
    assert set(files_beside(file)) == {"acme_file.py", *helpers}
    hashes = [hash_files(record)]
    for name in helpers:
        (tmp_path / name).write_text(f"{helpers[name]}\n# edited\n")
        hashes.append(hash_files(record))
    assert len(set(hashes)) == 1 + len(helpers)
    for name in others:
        (tmp_path / name).write_text("# edited")
    assert hash_files(record) == hashes[-1]


# --- differences -----------------------------------------------------------------------------------------------------
def test_equal_environments_do_not_differ(site, tmp_path):
    install(site, "loop")
    lock = lock_of("loop", "ode")
    again = lock_again(lock, load_plugins(), RUN_FILE)
    assert again == lock
    assert digest(again) == digest(lock)
    refuse_drift(tmp_path, lock, again)


def test_where_a_package_lies_is_no_difference(site, tmp_path):
    install(site, "loop")
    lock = lock_of("loop")
    elsewhere = replace(entry_of(lock, "acme-loop"), source=Source(kind="vcs", location="ssh://host/x", commit="3f"))
    moved = replace(lock, plugins=(elsewhere, *lock.plugins[1:]))
    assert changed_environment(lock, moved) == []
    assert digest(lock) == digest(moved)
    refuse_drift(tmp_path, lock, moved)


def test_drift_is_refused_with_everything_that_differs(site, tmp_path):
    install(site, "loop")
    install(site, "gone")
    lock = replace(lock_of("loop", "gone"), torch="2.0")
    old = entry_of(lock, "acme-loop")
    install(site, "loop", version="1.1", loop="VALUE = 2\n")
    for file in (site / "acme_gone-1.0.dist-info").iterdir():
        file.unlink()
    (site / "acme_gone-1.0.dist-info").rmdir()
    training = {"seed": 1, "output_dir": "/elsewhere", "data_path": {"/a": 2}}
    now = lock_again(lock, load_plugins(), {**RUN_FILE, "training": training})
    new = entry_of(now, "acme-loop")
    assert old.sha256 != new.sha256
    with pytest.raises(PluginError) as caught:
        refuse_drift(tmp_path / "run.lock.json", lock, now)
    title, header, *rows = caught.value.message.splitlines()
    assert title == f"this is not what {tmp_path / 'run.lock.json'} locks [P12]:"
    assert header.split() == ["LOCKED", "NOW"]
    assert [row.split("   ")[1].strip() for row in rows] == [
        "torch",
        "plugin gone (acme-gone)",
        "plugin loop (acme-loop)",
        "run file training.seed",
        "run file training.data_path",
    ]
    assert rows[0].split() == ["torch", "2.0", now.torch]
    assert rows[1].endswith("not installed")
    assert f"1.0  {old.sha256[:12]}  index" in rows[2]
    assert f"1.1  {new.sha256[:12]}  index" in rows[2]
    assert '{"/a": 1}' in rows[4]
    assert '{"/a": 2}' in rows[4]
    commands = ["python -m pip install acme-gone==1.0", "python -m pip install acme-loop==1.0"]
    assert caught.value.cure.splitlines()[:2] == commands
    assert digest(lock) != digest(now)


def test_a_plugin_that_was_edited_without_a_new_version_is_drift(site, tmp_path):
    install(site, "loop")
    lock = lock_of("loop")
    (site / "acme_loop/loop.py").write_text("VALUE = 2\n")
    with pytest.raises(PluginError, match=r"plugin loop \(acme-loop\)"):
        refuse_drift(tmp_path, lock, lock_again(lock, load_plugins(), RUN_FILE))


def test_a_plugin_that_was_not_used_is_no_drift(site, tmp_path):
    install(site, "loop")
    lock = lock_of("loop")
    install(site, "other")
    refuse_drift(tmp_path, lock, lock_again(lock, load_plugins(), RUN_FILE))


@pytest.mark.parametrize(
    ("source", "cure"),
    [
        (Source(kind="vcs", location="ssh://h/l", commit="3f"), "python -m pip install 'acme-loop @ git+ssh://h/l@3f'"),
        (Source(kind="editable", location="/src", commit="3f", dirty=False), "git -C /src checkout 3f"),
        (Source(kind="editable", location="/src", commit="3f", dirty=True), "acme-loop came from editable /src @ 3f with "),
        (Source(kind="file", location="/m.py"), "acme-loop came from file /m.py"),
    ],
)
def test_the_cure_says_where_the_locked_code_is(site, tmp_path, source, cure):
    install(site, "loop")
    lock = lock_of("loop")
    entry = replace(entry_of(lock, "acme-loop"), source=source, version="0.9")
    locked = replace(lock, plugins=(entry, *lock.plugins[1:]))
    with pytest.raises(PluginError) as caught:
        refuse_drift(tmp_path, locked, lock)
    assert caught.value.cure.startswith(cure)
