"""Runs the steps of a page in the current folder: ``python page_driver.py STEPS_AS_JSON RESULTS_FILE``.

``fvd`` and ``pytest`` run in this process, so that torch is imported once; ``pip install -e FOLDER`` lays out the folder's
metadata as pip would, and ``pip install NAME`` does nothing (a real pip is used by the tests of clean environments); ``python
-m`` before any of these makes no difference; anything else goes to a shell.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import shlex
import subprocess
import sys
import tomllib
import traceback
from pathlib import Path

FOLDER = Path.cwd()
SITE = FOLDER / ".site"


def main(steps_as_json: str, results_file: str) -> None:
    SITE.mkdir()
    sys.path.insert(0, str(SITE))
    results = []
    for step in json.loads(steps_as_json):
        if "file" in step:
            path = FOLDER / step["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step["text"], encoding="utf-8")
        else:
            print("$", step["command"], file=sys.__stderr__, flush=True)
            status, output = type_command(step["command"])
            print(output, file=sys.__stderr__, flush=True)
            results.append((status, output.replace(str(FOLDER) + "/", "").replace(str(FOLDER), ".")))
    Path(results_file).write_text(json.dumps(results), encoding="utf-8")


def type_command(line: str) -> tuple[int, str]:
    program, *arguments = shlex.split(line)
    if program == "python" and arguments[0] == "-m":
        program, *arguments = arguments[1:]
    if any(sign in line for sign in ("|", ">", "&&")) and program in ("fvd", "pytest"):
        return redirected(line)
    match program:
        case "fvd":
            return in_process(arguments, run_fvd)
        case "pytest":
            return in_process(arguments, run_pytest)
        case "pip":
            return pip(arguments)
        case "cd":
            os.chdir(FOLDER / arguments[0])
            return 0, ""
    finished = subprocess.run(line, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return finished.returncode, finished.stdout


def redirected(line: str) -> tuple[int, str]:
    """``fvd … > file``: the one redirection that pages use."""
    command, _, file = line.partition(" > ")
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = run_fvd(shlex.split(command)[1:])
    Path(file.strip()).write_text(out.getvalue(), encoding="utf-8")
    return status, errors.getvalue()


def in_process(arguments, run) -> tuple[int, str]:
    forget_modules()
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            status = run(arguments)
        except Exception:
            traceback.print_exc()
            status = -1
    return status, output.getvalue()


def run_fvd(arguments: list[str]) -> int:
    from fvd.cli.main import main as fvd

    return fvd(arguments)


def run_pytest(arguments: list[str]) -> int:
    import pytest

    return int(pytest.main(["-p", "no:cacheprovider", "-p", "no:warnings", *arguments]))


def forget_modules() -> None:
    """Files of the page may have changed since they were imported."""
    for name, module in list(sys.modules.items()):
        origin = vars(module).get("__file__")
        if isinstance(origin, str) and FOLDER in Path(origin).parents:
            del sys.modules[name]
    importlib.invalidate_caches()


def pip(arguments: list[str]) -> tuple[int, str]:
    """``pip install NAME``, ``pip install -e FOLDER`` and ``pip uninstall -y NAME``."""
    import shutil

    if arguments[0] == "uninstall":
        name = arguments[-1].replace("-", "_")
        for metadata in SITE.glob(f"{name}-*.dist-info"):
            sys.path.remove(json.loads((metadata / "direct_url.json").read_text())["url"].removeprefix("file://") + "/src")
            shutil.rmtree(metadata)
        return 0, ""
    if arguments[:-1] == ["install"]:
        return 0, ""  # by name: what the page needs is here
    folder = (Path.cwd() / arguments[-1]).resolve()
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = SITE / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir(exist_ok=True)
    lines = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {project['version']}"]
    lines += [f"Summary: {project.get('description', '')}", *(f"Requires-Dist: {one}" for one in project["dependencies"])]
    (metadata / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    groups = project.get("entry-points", {})
    declared = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in groups.items()]
    (metadata / "entry_points.txt").write_text("\n".join(declared), encoding="utf-8")
    (metadata / "direct_url.json").write_text(json.dumps({"url": f"file://{folder}", "dir_info": {"editable": True}}))
    sys.path.insert(1, str(folder / "src"))
    importlib.invalidate_caches()
    return 0, ""


if __name__ == "__main__":
    main(*sys.argv[1:])
