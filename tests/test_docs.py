"""The pages in docs/ are true: what they show is run, what is made from code is made again, what they count is counted.

``FVD_WRITE_DOCS=1 pytest tests/test_docs.py`` writes into the pages what does not agree.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from code_lines import code_lines
from pages import WRITE, File, Typed, alike, read_page, run_page, write_transcripts
from vocabulary import vocabulary_page

from fvd import hookspecs
from fvd.plugins.hooks import HOOK_RETURNS
from fvd.testing.conformance.table import CHECKS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
WALKED = ("tutorial.md", "methods.md")


def lines_in(folder: Path) -> int:
    """Lines of code under a folder: no blank ones, no comments, no docstrings."""
    return sum(len(code_lines(file.read_text(encoding="utf-8"))) for file in folder.rglob("*.py"))


# --- pages that are walked through ------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=WALKED)
def walked(request, tmp_path_factory) -> tuple[Path, Path, list[tuple[Typed, int, str]]]:
    page, folder = DOCS / request.param, tmp_path_factory.mktemp("page")
    outcomes = run_page(page, folder)
    if WRITE:
        write_transcripts(page, outcomes)
    return page, folder, outcomes


def test_every_command_of_the_page_does_what_it_shows(walked):
    page, _, outcomes = walked
    failing = [typed.command for typed, status, _ in outcomes if status != 0]
    assert failing == [typed.command for typed, _, _ in outcomes if " -k B" in typed.command]  # broken on purpose
    if not WRITE:
        wrong = [f"$ {typed.command}\n{output}" for typed, _, output in outcomes if not alike(typed.shown, output)]
        assert not wrong, f"{page.name} (FVD_WRITE_DOCS=1 writes it anew):\n" + "\n".join(wrong)


def test_the_runs_of_the_page_have_trained(walked):
    page, folder, _ = walked
    runs = sorted(path.parent for path in folder.glob("outputs/*/metrics.jsonl"))
    assert len(runs) == 2, page
    assert all((run / "run.lock.json").exists() and any((run / "checkpoints").iterdir()) for run in runs)


# --- pages that are made from code ------------------------------------------------------------------------------------
def written(page: Path, text: str) -> str:
    """What the page should say, or with FVD_WRITE_DOCS=1 what it now says."""
    if WRITE:
        page.write_text(text, encoding="utf-8")
    return text


def test_the_vocabulary_is_that_of_the_code():
    page = DOCS / "vocabulary.md"
    assert written(page, vocabulary_page()) == page.read_text(encoding="utf-8")


def test_the_table_of_checks_is_that_of_the_kit():
    page = DOCS / "reference.md"
    text = page.read_text(encoding="utf-8")
    rows = [f"| {check.id} | {', '.join(sorted(check.kinds))} | {check.title} |" for check in CHECKS]
    table = "\n".join(["| id | of | what has to hold |", "|---|---|---|", *rows])
    pattern = re.compile(r"<!-- checks -->\n(.*?)<!-- end of checks -->", flags=re.DOTALL)
    wanted = f"<!-- checks -->\n\n{table}\n\n<!-- end of checks -->"
    assert written(page, pattern.sub(lambda _: wanted, text)) == page.read_text(encoding="utf-8")
    assert pattern.search(text)


def test_the_tables_of_hooks_are_complete():
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    named = dict(re.findall(r"^\| `(fvd_\w+)\(([^)]*)\)` \|", text, flags=re.MULTILINE))
    specs = {name: function for name, function in vars(hookspecs).items() if name.startswith("fvd_")}
    assert named == {name: ", ".join(inspect.signature(spec).parameters) for name, spec in specs.items()}
    returned = dict(re.findall(r"^\| `(fvd_\w+)\(\)` \| `fvd\.(\w+)`", text, flags=re.MULTILINE))
    assert returned == {hook: spec.__name__ for hook, spec in HOOK_RETURNS.items()}


# --- what pages say of files and numbers ------------------------------------------------------------------------------
def test_the_files_of_the_page_on_methods_are_the_examples():
    files = {
        step.path: step.text for step in read_page((DOCS / "methods.md").read_text(encoding="utf-8")) if isinstance(step, File)
    }
    assert files["my_method.py"] == (ROOT / "examples/my_method.py").read_text(encoding="utf-8")
    assert files["toy.yaml"] == (ROOT / "examples/toy.yaml").read_text(encoding="utf-8")


EXPLAINED = ROOT / "core/src/fvd/plugins/pages"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*DOCS.rglob("*.md"), *EXPLAINED.glob("*.md"), ROOT / "README.md"])


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_that_a_page_names_exist(page):
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []
    named = re.findall(r"`((?:tests|plugins|examples|core)/[\w./-]+)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_a_family_and_a_method_are_at_most_sixty_lines(tmp_path):
    """Over all files of the distribution, tests not counted."""
    from fvd.cli.main import main

    counted = {"fvd-ltx": lines_in(ROOT / "tests/thirdparty/fvd-ltx/src")}
    for kind in ("family", "method"):
        assert main(["plugins", "new", f"fvd-new{kind}", "--kind", kind, "--into", str(tmp_path)]) == 0
        counted[kind] = lines_in(tmp_path / f"fvd-new{kind}/src")
    counted["my_method.py"] = len(code_lines((ROOT / "examples/my_method.py").read_text(encoding="utf-8")))
    assert all(lines <= 60 for lines in counted.values()), counted
    said = {
        name: int(lines)
        for page in ("tutorial.md", "methods.md")
        for name, lines in re.findall(r"<!-- lines of ([\w.-]+) -->(\d+)", (DOCS / page).read_text(encoding="utf-8"))
    }
    assert said
    assert {name: counted[name] for name in said} == said


def test_a_transcript_is_compared_line_by_line_but_for_figures():
    shown = "ready in 3 s\n...\nlast line\n"
    assert alike(shown, "ready in 12 s\none\ntwo\nlast line\n")
    assert not alike(shown, "ready in 12 s\none\ntwo\nlast lines\n")
    assert not alike("one\n", "one\ntwo\n")
