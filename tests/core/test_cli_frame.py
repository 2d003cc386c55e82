"""`fvd` itself: global options, finding commands, exit statuses, and who is blamed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial

import pytest

import fvd
from fvd.cli.main import COMMANDS, main
from fvd.plugins import PluginOptions
from fvd.testing import fake_dist, installed_in

PLUGIN = """
    import fvd

    @fvd.hookimpl
    def fvd_commands():
        return [fvd.CommandSpec(name="{name}", target="{package}.cli:configure", summary="greets 100% of people")]
"""
CLI = """
    def configure(parser):
        parser.add_argument("who")
        parser.add_argument("--loud", action="store_true")
        parser.set_defaults(execute=greet)

    def greet(args):
        {body}
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    for variable in ("FVD_PLUGINS", "FVD_DISABLE_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    with installed_in(tmp_path):
        yield partial(fake_dist, tmp_path)


def install_command(install, package: str, name: str, body: str = "print('hello', args.who, args.loud); return 7") -> None:
    sources = {f"{package}.plugin": PLUGIN.format(name=name, package=package), f"{package}.cli": CLI.format(body=body)}
    install(package, entry_points={f"{package}_ep": f"{package}.plugin"}, modules=sources)


def run_fvd(*arguments: str, folder="", **options) -> subprocess.CompletedProcess:
    environment = dict(os.environ, PYTHONPATH=str(folder))
    command = [sys.executable, "-m", "fvd.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **options)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fvd {fvd.__version__}\n"


@pytest.mark.parametrize("argv", [["--help"], ["-h"], []])
def test_help_lists_commands_with_their_line_and_origin(install, capsys, argv):
    install_command(install, "x_greet", "greet")
    assert main(argv) == 0
    out = capsys.readouterr().out
    for name, (_, summary) in COMMANDS.items():
        assert f"  {name:<13}  {summary}\n" in out
    assert "greets 100% of people  [x_greet 1.0]" in out
    assert "x_greet.cli" not in sys.modules


def test_help_survives_everything(install, capsys, monkeypatch):
    install("x-broken", entry_points={"brk": "x_brk"}, modules={"x_brk": "1 / 0"})
    assert main(["--help"]) == 0
    assert "brk (broken)" in capsys.readouterr().out
    monkeypatch.setenv("FVD_PLUGINS", "misspelt")
    assert main(["--help"]) == 0
    assert "FVD_PLUGINS names 'misspelt'" in capsys.readouterr().out


def test_a_command_of_a_plugin_runs(install, capsys):
    install_command(install, "x_greet", "greet")
    assert main(["greet", "--loud", "you"]) == 7
    assert capsys.readouterr().out == "hello you True\n"
    assert main(["x-greet:greet", "you"]) == 7
    assert main(["greet", "--help"]) == 0
    assert "Greets 100% of people." in capsys.readouterr().out


def test_the_help_tells_two_commands_of_one_name_apart(install, capsys):
    """By distribution; two plugins of one distribution by plugin."""
    sources = {f"x_two.{name}": PLUGIN.format(name="hello", package="x_two") for name in ("a", "b")}
    install("x-two", entry_points={"a": "x_two.a", "b": "x_two.b"}, modules=sources)
    assert main(["--help"]) == 0
    shown = re.findall(r"^  (\S*:hello) ", capsys.readouterr().out, flags=re.MULTILINE)
    assert shown == ["a:hello", "b:hello"]


@pytest.mark.parametrize(
    "argv", [["-p", "no:x_greet", "greet", "you"], ["greet", "you", "-p", "no:x-greet"], ["greet", "-pno:x_greet_ep"]]
)
def test_p_no_name_counts_before_and_after_the_command(install, capsys, argv):
    install_command(install, "x_greet", "greet")
    assert main(argv) == 2
    assert "unknown command 'greet'" in capsys.readouterr().err
    assert "x_greet.plugin" not in sys.modules


def test_what_follows_two_dashes_belongs_to_the_command(install, capsys):
    install_command(install, "x_greet", "greet", "print(args.who, args.plugin_options); return 0")
    assert main(["greet", "--", "-pno:x_greet"]) == 0
    assert capsys.readouterr().out == f"-pno:x_greet {PluginOptions()}\n"


def test_options_about_plugins_count_wherever_they_stand(install, capsys, tmp_path):
    """One line, every way of writing them, before and after the command."""
    install_command(install, "x_greet", "greet", "print(args.who, args.plugin_options); return 0")
    install("x-asked", on_request={"asked": "x_asked", "again": "x_again"}, modules={"x_asked": "", "x_again": ""})
    install("x-off", entry_points={"off": "x_off", "out": "x_out"}, modules={"x_off": "1 / 0", "x_out": "1 / 0"})
    files = [tmp_path / "a_first_file.py", tmp_path / "a_second_file.py"]
    for file in files:
        file.write_text("import fvd\n@fvd.hookimpl\ndef fvd_samplers(): return []")
    before = ["-p", "asked", "-pno:off", "--plugin", str(files[0])]
    after = ["you", "-pagain", "-p", "no:out", f"--plugin={files[1]}", "--strict-plugins"]
    assert main([*before, "greet", *after]) == 0
    wanted = PluginOptions(
        disable=("off", "out"), request=("asked", "again"), files=tuple(str(file) for file in files), strict=True
    )
    assert capsys.readouterr().out == f"you {wanted}\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["chekc", "x"], ["unknown command 'chekc'", "did you mean 'check'"]),
        (["--versoin"], ["unknown option '--versoin'", "did you mean '--version'"]),
        (["-p", "--help"], ["-p expects NAME or no:NAME", "'--help'"]),
        (["-p"], ["-p expects NAME or no:NAME"]),
        (["run", "x.yaml", "--plugin"], ["--plugin expects FILE"]),
        (["--plugn", "x.py"], ["unknown option '--plugn'", "did you mean '--plugin'"]),
        (["plugins", "show"], ["NAME"]),
        (["plugins", "lsit"], ["lsit"]),
        (["plugins"], ["COMMAND"]),
    ],
)
def test_a_wrong_command_line_exits_with_2(capsys, argv, words):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words)
    assert "Traceback" not in err


def test_an_unknown_command_that_a_broken_plugin_may_have(install, capsys):
    install("x-greet", entry_points={"greet": "x_greet"}, modules={"x_greet": "import nowhere_at_all"})
    assert main(["greet"]) == 2
    assert "plugin greet (x-greet 1.0) is broken: import failed: missing dependency 'nowhere_at_all'" in capsys.readouterr().err


def test_commands_of_core_cannot_be_taken(install, capsys):
    install_command(install, "x_shadow", "plugins", "print('shadowed'); return 0")
    assert main(["plugins", "list"]) == 0
    out = capsys.readouterr().out
    assert "shadowed" not in out
    assert "x_shadow_ep" in out
    assert "command 'plugins' is not reachable" in out


def test_two_plugins_with_one_command(install, capsys):
    install_command(install, "x_greet", "greet")
    install_command(install, "y_greet", "greet")
    assert main(["greet", "you"]) == 1
    assert capsys.readouterr().err.startswith("fvd: command 'greet' is provided by x_greet and y_greet")
    assert main(["y_greet:greet", "you"]) == 7
    main(["--help"])
    assert "x_greet:greet" in capsys.readouterr().out


def test_an_error_for_the_user(install, capsys):
    install_command(install, "x_greet", "greet", "import fvd; raise fvd.FvdError('no model', cure='Make one.')")
    assert main(["greet", "you"]) == 1
    assert capsys.readouterr().err == "fvd: no model\nMake one.\n"


@pytest.mark.parametrize(
    ("body", "status", "err"),
    [
        ("raise KeyboardInterrupt", 130, "fvd: interrupted\n"),
        ("raise SystemExit('stopped')", 1, "stopped\n"),
        ("raise SystemExit(5)", 5, ""),
        ("raise SystemExit", 0, ""),
    ],
)
def test_other_endings(install, capsys, body, status, err):
    install_command(install, "x_greet", "greet", body)
    assert main(["greet", "you"]) == status
    assert capsys.readouterr().err == err


def test_a_bug_in_a_plugin_propagates_and_names_the_plugin(install):
    install_command(install, "x_greet", "greet", "return {}['gone']")
    with pytest.raises(KeyError) as caught:
        main(["greet", "you"])
    assert caught.value.__notes__ == [
        "fvd: this came through plugin x_greet_ep (x_greet 1.0); if it is a bug, report it to its authors."
    ]


def test_a_bug_elsewhere_blames_nobody(install, monkeypatch):
    install_command(install, "x_greet", "greet")
    monkeypatch.setattr("fvd.cli.plugins.list._print_listing", lambda *_: {}["gone"])
    with pytest.raises(KeyError) as caught:
        main(["plugins", "list"])
    assert "__notes__" not in vars(caught.value)


def test_a_command_that_forgot_execute_shows_its_help(install, capsys):
    sources = {"x_f.plugin": PLUGIN.format(name="f", package="x_f"), "x_f.cli": "def configure(parser): pass"}
    install("x-f", entry_points={"f": "x_f.plugin"}, modules=sources)
    assert main(["f"]) == 2
    assert "usage: fvd f" in capsys.readouterr().err


def test_exit_status_of_the_process(tmp_path):
    assert run_fvd("--version").stdout == f"fvd {fvd.__version__}\n"
    failed = run_fvd("plugins", "show", "nowhere")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("fvd: there is no plugin or component 'nowhere'")
    assert "Traceback" not in failed.stderr
    assert run_fvd("nonsense").returncode == 2


def test_a_closed_pipe_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    # Buffered, as for a user: the failure then comes when main flushes, and once more when Python exits.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "fvd.cli.main", "plugins", "list"]
    finished = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(writer)
    assert (finished.returncode, finished.stderr) == (141, "")


def test_a_terminal_without_unicode():
    environment = dict(os.environ, PYTHONIOENCODING="ascii")
    command = [sys.executable, "-m", "fvd.cli.main", "plugins", "list"]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "plugins usable" in finished.stdout
