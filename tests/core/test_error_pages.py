"""The pages of `fvd plugins explain` are true: every code has a page, and what a page shows is what the program says.

    FVD_WRITE_DOCS=1 pytest tests/core/test_error_pages.py

writes the transcripts of the pages anew. Each case below installs distributions in an empty environment (core alone) and
runs commands there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from fvd.cli.main import main
from fvd.config.load import load_run_file
from fvd.plugins import registry
from fvd.plugins.lock import make_lock
from fvd.rundir import with_absolute_paths
from fvd.testing import fake_dist, installed_in

INDEX = Path(__file__).parents[2] / "docs/errors/README.md"
SOURCES = Path(__file__).parents[2] / "core/src/fvd"
PAGES = SOURCES / "plugins/pages"
TRANSCRIPT = re.compile(r"(<!-- transcript: (.+?) -->\n\n```console\n)(.*?)(```\n)", re.DOTALL)

LIST = "fvd plugins list"
CHECK = "fvd check run.yaml"
DOCTOR = "fvd plugins doctor"
MACHINE = "fvd-core 0.1.0  ·  Python 3.12.3 (/home/you/venv/bin/python)  ·  Linux\n  torch 2.13.0  …\n  CUDA devices: none\n"
"""What `doctor` says of the machine, in transcripts."""


@dataclass(frozen=True)
class Case:
    """arrange: makes the environment; it gets `fake_dist` for it, and the current folder is empty. commands: what is
    typed, perhaps with variables in front."""

    code: str
    name: str
    arrange: Callable[..., object]
    commands: tuple[str, ...] = (LIST,)


# --- what is installed -------------------------------------------------------------------------------------------------
HOOK = "import fvd\n\n\n@fvd.hookimpl\n"


def ltx(source: str, **options: object) -> Callable[..., object]:
    """acme-ltx with this light module."""
    about = {"entry_points": {"ltx": "acme_ltx.plugin"}, "modules": {"acme_ltx.plugin": source}}
    return lambda install: install("acme-ltx", "0.3.0", **about | options)


def family(name: str, package: str, provides: str = "fvd.TEXT_TO_VIDEO", config: str = "") -> str:
    config = f', config="{config}"' if config else ""
    return f"""{HOOK}def fvd_families():
    return [fvd.FamilySpec(name="{name}", target="{package}.family:Family", provides={provides}{config})]
"""


METHOD = f"""{HOOK}def fvd_methods():
    roles = {{"student": fvd.RoleNeeds(trainable=True, needs={{"predict", "training_target"}})}}
    return [fvd.MethodSpec(name="regress", target="acme_regress.method:Regress", roles=roles, needs={{"prepare_batch"}})]
"""

RUN_FILE = """\
recipe: {family: ltx, method: regress}
roles: {student: {path: models/ltx}}
training: {data_path: data, output_dir: outputs/first, max_train_steps: 10, learning_rate: 1.0e-5}
"""


def run_file(*installed: Callable[..., object], more: str = "", **changes: str) -> Callable[..., object]:
    """A run file of a family and a method, and the distributions in ``installed``. changes: words of the file."""

    def arrange(install: Callable[..., object]) -> None:
        text = RUN_FILE + more
        for word, other in changes.items():
            text = text.replace(word, other)
        Path("run.yaml").write_text(text, encoding="utf-8")
        Path("data").mkdir()
        Path("data/part.parquet").touch()
        for one in installed:
            one(install)

    return arrange


def regress(install: Callable[..., object]) -> None:
    install("acme-regress", entry_points={"regress": "acme_regress"}, modules={"acme_regress": METHOD})


def two_of_one_plugin_name(install: Callable[..., object]) -> None:
    for name in ("acme", "bravo"):
        modules = {f"{name}_ltx": family("ltx", f"{name}_ltx")}
        install(f"{name}-ltx", entry_points={"ltx": f"{name}_ltx"}, modules=modules)


def two_of_one_module(install: Callable[..., object]) -> None:
    install("acme-ltx", entry_points={"ltx": "acme_ltx"}, modules={"acme_ltx": family("ltx", "acme_ltx")})
    install("forked-ltx", entry_points={"forked": "acme_ltx"})


def two_of_one_family(install: Callable[..., object]) -> None:
    for name in ("acme", "bravo"):
        modules = {f"{name}_ltx": family("ltx", f"{name}_ltx")}
        install(f"{name}-ltx", entry_points={f"{name}_ltx": f"{name}_ltx"}, modules=modules)


def without_metadata(install: Callable[..., object]) -> None:
    folder = ltx("")(install)
    assert isinstance(folder, Path)
    (folder / "acme_ltx-0.3.0.dist-info/METADATA").unlink()


def heavy(install: Callable[..., object]) -> None:
    install("x-torch", modules={"torch": "class Tensor: pass"})  # in its place: the real one takes seconds
    ltx("import torch\n" + family("ltx", "acme_ltx"))(install)


def stale(install: Callable[..., object]) -> None:
    folder = ltx(family("ltx", "acme_ltx"))(install)
    assert isinstance(folder, Path)
    source = folder.parent / "acme-ltx"
    source.mkdir()
    declared = '[project.entry-points."fvd.plugins"]\nltx = "acme_ltx.plugin"\nltx_video = "acme_ltx.video"\n'
    (source / "pyproject.toml").write_text(f'[project]\nname = "acme-ltx"\n{declared}', encoding="utf-8")
    document = {"url": source.as_uri(), "dir_info": {"editable": True}}
    (folder / "acme_ltx-0.3.0.dist-info/direct_url.json").write_text(json.dumps(document), encoding="utf-8")


def twice(install: Callable[..., object]) -> None:
    ltx("", requires=["fvd-core>=0.1,<1"])(install)
    folder = fake_dist(Path("../older").resolve(), "acme-ltx", "0.2.0")
    sys.path.append(str(folder))


def broken_torch(install: Callable[..., object]) -> None:
    sys.modules.pop("torch", None)
    source = "raise OSError('libcudart.so.13: cannot open shared object file: No such file or directory')"
    install("x-torch", modules={"torch": source})


def local_file(name: str, source: str) -> Callable[..., object]:
    return run_file(lambda install: Path(name).write_text(source, encoding="utf-8"))


def two_files(install: Callable[..., object]) -> None:
    local_file("my_method.py", METHOD)(install)
    Path("older").mkdir()
    Path("older/my_method.py").write_text(METHOD, encoding="utf-8")


def another_version_than_locked(install: Callable[..., object]) -> None:
    """The lock that a run with 0.3.0 leaves, and 0.4.0 in its place."""
    run_file(regress, ltx(GOOD))(install)
    loaded = load_run_file(Path("run.yaml"))
    config, plugins = loaded.require(), loaded.plugins
    used = [plugins.spec("family", "ltx"), plugins.spec("method", "regress")]
    folder = Path("outputs/first")
    folder.mkdir(parents=True)
    lock = make_lock(plugins, used, with_absolute_paths(config.as_document()))
    (folder / "run.lock.json").write_text(lock.as_json(), encoding="utf-8")
    modules = {"acme_ltx.plugin": GOOD, "acme_ltx.faster": "SPEED = 2"}
    site = install("acme-ltx", "0.4.0", entry_points={"ltx": "acme_ltx.plugin"}, modules=modules)
    assert isinstance(site, Path)
    shutil.rmtree(site / "acme_ltx-0.3.0.dist-info")


GOOD = family("ltx", "acme_ltx")
COMMAND = HOOK + 'def fvd_commands():\n    return [fvd.CommandSpec(name="ltx", target="acme_ltx.cli:confgure")]\n'
PLUGIN_OPTION = " --plugin my_method.py"

CASES = [
    Case("P01", "not a module", ltx("", entry_points={"ltx": "acme_ltx.plugin:register"})),
    Case("P01", "damaged metadata", without_metadata),
    Case("P01", "no such file", run_file(), (CHECK + " --plugin my_methd.py",)),
    Case("P02", "another core", ltx("", requires=["fvd-core>=99,<100"])),
    Case("P03", "missing dependency", ltx("import ltx_kernels\n", requires=["ltx-kernels>=2"])),
    Case("P03", "undeclared dependency", ltx("import ltx_kernels\n")),
    Case("P03", "incomplete installation", ltx("import acme_ltx.tables\n")),
    Case("P03", "mistake", ltx("SIZES = {}\nSMALL = SIZES['small']\n")),
    Case("P03", "ends the program", ltx("import sys\n\nsys.exit('no GPU here')\n")),
    Case("P03", "local file", local_file("my_method.py", "import ltx_kernels\n"), (CHECK + PLUGIN_OPTION,)),
    Case("P04", "unknown hook", ltx(HOOK + "def fvd_familys():\n    return []\n")),
    Case("P04", "keyword-only argument", ltx(HOOK + "def fvd_step_end(*, run, step):\n    pass\n")),
    Case("P04", "collected arguments", ltx(HOOK + "def fvd_run_start(**kw):\n    pass\n")),
    Case("P04", "no marker", ltx("def fvd_families():\n    return []\n")),
    Case("P04", "no hook", local_file("my_method.py", "def train():\n    pass\n"), (CHECK + PLUGIN_OPTION,)),
    Case("P05", "wrong type", ltx(HOOK + "def fvd_families():\n    return 'ltx'\n")),
    Case("P05", "nothing returned", ltx(HOOK + "def fvd_families():\n    pass\n")),
    Case("P05", "bad value", ltx(family("ltx", "acme_ltx", provides='{"predikt"}'))),
    Case("P05", "unknown field", ltx(GOOD.replace("name=", "speed=9, name="))),
    Case("P06", "plugin name", two_of_one_plugin_name),
    Case("P06", "module", two_of_one_module),
    Case("P06", "local file", local_file("random.py", ""), (CHECK + " --plugin random.py",)),
    Case("P06", "two local files", two_files, (CHECK + " --plugin my_method.py --plugin older/my_method.py",)),
    Case("P07", "component name", run_file(two_of_one_family, regress), (LIST, CHECK)),
    Case("P08", "misspelt", run_file(ltx(GOOD), regress, ltx="lxt"), (CHECK,)),
    Case("P08", "not installed", run_file(regress, ltx="wan"), (CHECK,)),
    Case("P08", "on request", run_file(), ("fvd data prepare clips --family toy --model random --out data",)),
    Case("P09", "missing module", run_file(ltx(family("ltx", "acme_ltx", config="acme_ltx.config:Config")), regress), (CHECK,)),
    Case(
        "P09",
        "misspelt target",
        ltx(COMMAND, modules={"acme_ltx.plugin": COMMAND, "acme_ltx.cli": "def configure(parser): ..."}),
        ("fvd ltx",),
    ),
    Case("P10", "by whom", ltx(GOOD), (LIST + " -p no:ltx",)),
    Case("P10", "in a run", run_file(ltx(GOOD), regress), ("FVD_DISABLE_PLUGINS=acme-ltx " + CHECK,)),
    Case(
        "P11",
        "missing primitive",
        run_file(ltx(family("ltx", "acme_ltx", provides='{"prepare_batch", "predict"}')), regress),
        (CHECK, "fvd plugins matrix"),
    ),
    Case(
        "P12",
        "required version",
        run_file(ltx(GOOD), regress, more="plugins: {require: [acme-ltx>=0.4, acme-heun]}\n"),
        (CHECK,),
    ),
    Case("P12", "another version", another_version_than_locked, ("fvd run run.yaml --locked",)),
    Case("P12", "no lock", run_file(ltx(GOOD), regress), ("fvd run run.yaml --locked",)),
    Case("W01", "heavy import", heavy),
    Case("W02", "stale editable", stale),
    Case("W03", "two installations", twice, (DOCTOR,)),
    Case("W04", "broken torch", broken_torch, (DOCTOR,)),
    Case("W05", "no upper bound", ltx("", requires=["fvd-core>=0.1"]), (DOCTOR,)),
    Case("W06", "command of core", ltx(COMMAND.replace("ltx", "run", 1))),
]


# --- running -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def environment(tmp_path, monkeypatch):
    """Core alone, and an empty current folder; ``environment(arrange)`` installs, gives the folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    if "torch" in sys.modules:
        monkeypatch.setitem(sys.modules, "torch", sys.modules["torch"])  # puts it back
    for variable in [name for name in os.environ if name.startswith("FVD_") and name != "FVD_WRITE_DOCS"]:
        monkeypatch.delenv(variable)
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    find = registry.find_candidates

    def find_new() -> list[object]:
        return [it for it in find() if it.distribution == "fvd-core" or it.distribution not in installed_before]

    installed_before = {candidate.distribution for candidate in find()}
    monkeypatch.setattr(registry, "find_candidates", find_new)
    with installed_in(site):
        yield lambda arrange: arrange(partial(fake_dist, site))


def run(command: str, capsys, monkeypatch, tmp_path) -> tuple[int, str]:
    """(exit status, what is seen), with the places and times of this machine replaced."""
    words = shlex.split(command)
    with monkeypatch.context() as context:
        while "=" in words[0]:
            context.setenv(*words.pop(0).split("=", 1))
        status = main(words[1:])
    captured = capsys.readouterr()
    text = (captured.out + captured.err).replace(str(tmp_path), "/home/you")
    text = re.sub(r"\(/\S+/(random\.py)\)", r"(/usr/lib/python3/\1)", text)
    text = re.sub(r"\Afvd-core .*  ·  Python .*\n  torch .*\n  CUDA .*\n", MACHINE, text).replace(sys.executable, "python")
    return status, re.sub(r"\(\d+ ms\)", "(2140 ms)", text)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code} {case.name}")
def test_the_transcript(case, environment, capsys, monkeypatch, tmp_path):
    environment(case.arrange)
    seen = [(command, *run(command, capsys, monkeypatch, tmp_path)) for command in case.commands]
    text = "".join(f"$ {command}\n{output.rstrip()}\n" for command, _, output in seen)
    assert case.code in text
    assert "Traceback" not in text
    # A bad plugin fails no listing; a run file that needs it does not pass.
    listings = [status for command, status, _ in seen if command.startswith("fvd plugins")]
    assert listings == [int(case.code == "W04")] * text.count("$ fvd plugins")
    assert all(status == 1 for command, status, _ in seen if not command.startswith("fvd plugins"))
    page = PAGES / f"{case.code}.md"
    if os.environ.get("FVD_WRITE_DOCS"):
        page.write_text(with_transcript(page.read_text(encoding="utf-8"), case.name, text), encoding="utf-8")
    shown = {name: body for _, name, body, _ in TRANSCRIPT.findall(page.read_text(encoding="utf-8"))}
    assert shown[case.name] == text


def with_transcript(page: str, name: str, text: str) -> str:
    return TRANSCRIPT.sub(lambda found: found[1] + text + found[4] if found[2] == name else found[0], page)


@pytest.mark.parametrize(
    "case", [case for case in CASES if {LIST, CHECK, DOCTOR} & set(case.commands)], ids=lambda case: f"{case.code} {case.name}"
)
def test_text_and_json_say_the_same(case, environment, capsys, monkeypatch, tmp_path):
    environment(case.arrange)
    (command,) = [command for command in case.commands if command in (LIST, CHECK, DOCTOR)][:1]
    text = run(command, capsys, monkeypatch, tmp_path)[1]
    document = json.loads(run(command + " --json", capsys, monkeypatch, tmp_path)[1])
    if command == CHECK:
        coded = [problem for problem in document["problems"] if f"[{case.code}]" in problem["message"]]
        parts = [(problem["message"], problem["cure"]) for problem in coded]
    else:
        remarks = [remark for name in ("remarks", "problems", "warnings") for remark in document.get(name, ())]
        found = document["plugins"] + [remark | {"reason": remark["message"]} for remark in remarks]
        parts = [(entry["reason"], entry["cure"]) for entry in found if entry["code"] == case.code]
        assert text.count(case.code) >= len(parts)
    assert parts
    for message, cure in parts:
        assert cure
        for line in (message, cure):
            assert line in text


# --- pages -------------------------------------------------------------------------------------------------------------
def pages() -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in PAGES.glob("[PW][0-9][0-9].md")}


def test_every_code_in_the_source_has_a_page_and_every_page_a_code():
    named = {code for path in SOURCES.rglob("*.py") for code in re.findall(r"\b[PW]\d\d\b", path.read_text(encoding="utf-8"))}
    assert named == set(pages()) == {case.code for case in CASES}


def test_every_transcript_of_a_page_is_a_case():
    shown = {(code, name) for code, page in pages().items() for _, name, _, _ in TRANSCRIPT.findall(page)}
    assert shown == {(case.code, case.name) for case in CASES}
    assert sum(page.count("```console") for page in pages().values()) == len(CASES)


def test_pages_have_one_form_and_the_index_lists_them():
    index = INDEX.read_text(encoding="utf-8")
    for code, page in pages().items():
        title = page.splitlines()[0]
        assert title.startswith(f"# {code}: ")
        assert re.findall(r"^## (.+)$", page, flags=re.MULTILINE) == [
            "What you see",
            "Why",
            "What to do as a user",
            "What to do as the plugin's author",
        ]
        assert f"| [{code}](../../core/src/fvd/plugins/pages/{code}.md) |" in index


def test_explain_prints_pages_for_a_terminal(capsys):
    assert main(["plugins", "explain", "p06", "W01"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# P06: two plugins claim one name\n\nState of the plugin: `conflict`")
    assert "\n\n# W01: " in out
    assert "may coincide (P07)" in out
    assert not re.search(r"<!--|\]\(", out)
    body = re.sub(r"<!-- .*? -->\n\n", "", pages()["W02"])
    assert main(["plugins", "explain", "W02"]) == 0
    assert capsys.readouterr().out == body  # it has no links


def test_explain_lists_the_codes(capsys):
    assert main(["plugins", "explain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(pages())
    assert lines[2] == "  P03  the plugin's module cannot be imported"
    assert main(["plugins", "explain", "P99", "P03"]) == 1
    assert capsys.readouterr().err.splitlines() == ["fvd: there is no code P99", "Codes:", *lines]


def test_show_points_to_explain(capsys):
    assert main(["plugins", "show", "p03"]) == 1
    assert capsys.readouterr().err == "fvd: p03 is a code, not a plugin\n`fvd plugins explain P03` says what it means.\n"
