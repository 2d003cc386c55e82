"""`fvd`: global options, the table of commands, and what happens when something goes wrong.

A command is a module with ``configure(parser)``, which adds its arguments and calls
``parser.set_defaults(execute=function)``; ``function(args)`` returns the exit status. Only the chosen command is
imported, and plugins are loaded when a command first asks for ``args.plugins``.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING

import fvd
from fvd.errors import FvdError, did_you_mean

if TYPE_CHECKING:
    from fvd.plugins import PluginOptions, PluginRecord, Plugins

Configure = Callable[[argparse.ArgumentParser], None]

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("fvd.cli.run", "train from a run file"),
    "check": ("fvd.cli.check", "check a run file, without torch"),
    "sample": ("fvd.cli.sample", "make videos with a trained role"),
    "export": ("fvd.cli.export", "write a trained role in another format"),
    "data": ("fvd.cli.data", "prepare and inspect training data"),
    "schema": ("fvd.cli.schema", "the run file's JSON Schema, for editors"),
    "plugins": ("fvd.cli.plugins", "what is installed, and whether it works"),
}
"""Core's own commands: module and one-line help. Plugins add others and cannot take these names."""

GLOBAL_OPTIONS = ("--help", "--version", "-p", "--plugin", "--strict-plugins")
"""A command's own options must have other names."""


@dataclass
class GlobalOptions:
    """What counts wherever it stands on the command line, and what may stand before the command."""

    disable: list[str] = field(default_factory=list)
    request: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    strict: bool = False
    version: bool = False
    help: bool = False


class UsageError(Exception):
    """A command line that cannot be read: exit status 2."""


class Arguments(argparse.Namespace):
    """What a command gets besides its own arguments: plugins, as the global options want them."""

    _options: GlobalOptions

    @cached_property
    def plugins(self) -> Plugins:
        """All installed plugins and those that were asked for, loaded on first use."""
        return self.plugin_options.load()

    def load_plugins_with(self, *names: str) -> Plugins:
        """As `plugins`, and with those that are loaded on request only and are called so."""
        return self.plugin_options.load(mentioned=names)

    def load_all_plugins(self) -> Plugins:
        """As `plugins`, and with all that are loaded on request only: a run file may name any of them."""
        return self.plugin_options.load(mentioned=self.plugins.on_request)

    @property
    def plugin_options(self) -> PluginOptions:
        """What the command line says about plugins."""
        from fvd.plugins import PluginOptions

        given = self._options
        return PluginOptions(
            disable=tuple(given.disable), request=tuple(given.request), files=tuple(given.files), strict=given.strict
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, 1 for what the user can mend, 2 for a wrong command line."""
    _accept_any_text(sys.stdout)
    _accept_any_text(sys.stderr)
    args = Arguments()
    try:
        status = _dispatch(sys.argv[1:] if argv is None else list(argv), args)
        sys.stdout.flush()
        return status
    except UsageError as error:
        print(f"fvd: {error}\nSee `fvd --help`.", file=sys.stderr)
        return 2
    except FvdError as error:
        print(f"fvd: {error}", file=sys.stderr)
        return 1
    except SystemExit as stop:
        return _exit_status(stop)
    except KeyboardInterrupt:
        print("fvd: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`head`) has what it wants. Python would complain again when it flushes stdout on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if damage := _damaged_lists(error):
            print(f"fvd: {damage}", file=sys.stderr)
            return 1
        _name_the_plugin(error, args)
        raise


def _dispatch(argv: list[str], args: Arguments) -> int:
    options, command, rest = _split(argv)
    args._options = options
    if options.version:
        print(f"fvd {fvd.__version__}")
        return 0
    if options.help or command is None:
        from fvd.cli.overview import print_overview

        print_overview(args, {name: summary for name, (_, summary) in COMMANDS.items()})
        return 0
    parser, configure = _find_command(command, args)
    configure(parser)
    parser.parse_args(rest, namespace=args)
    if "execute" not in args:
        parser.print_help(sys.stderr)
        return 2
    status: int = args.execute(args)
    return status


def _split(argv: list[str]) -> tuple[GlobalOptions, str | None, list[str]]:
    """(global options, command, the command's own arguments)."""
    options = GlobalOptions()
    rest = _take_plugin_options(argv, options)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option in ("-h", "--help"):
            options.help = True
        elif option == "--version":
            options.version = True
        else:
            raise UsageError(f"unknown option {option!r}{did_you_mean(option, GLOBAL_OPTIONS)}")
    return options, rest[0] if rest else None, rest[1:]


def _take_plugin_options(argv: list[str], options: GlobalOptions) -> list[str]:
    """``argv`` without the options about plugins, which count wherever they stand; what follows ``--`` is the command's."""
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            return [*rest, word, *words]
        if word == "--strict-plugins":
            options.strict = True
        elif word == "--plugin" or word.startswith("--plugin="):
            options.files.append(_value_of("--plugin", "FILE", word.removeprefix("--plugin").removeprefix("="), words))
        elif word.startswith("-p"):
            name = _value_of("-p", "NAME or no:NAME", word.removeprefix("-p"), words)
            if name.startswith("no:"):
                options.disable.append(name.removeprefix("no:"))
            else:
                options.request.append(name)
        else:
            rest.append(word)
    return rest


def _value_of(option: str, metavar: str, attached: str, words: Iterator[str]) -> str:
    value = attached or next(words, "")
    if not value or value.startswith("-"):
        raise UsageError(f"{option} expects {metavar}{f', got {value!r}' if value else ''}")
    return value


def _find_command(name: str, args: Arguments) -> tuple[argparse.ArgumentParser, Configure]:
    """The command's parser and what fills it. Plugins are loaded only for a name that is not core's."""
    if name in COMMANDS:
        module, summary = COMMANDS[name]
        configure: Configure = import_module(module).configure
    else:
        own_names = {spec.name for spec in args.plugins.specs("command")}
        if name.rpartition(":")[2] not in own_names:
            raise _unknown_command(name, args.plugins)
        summary = args.plugins.spec("command", name).summary
        configure = args.plugins.load("command", name)
    description = summary[:1].upper() + summary[1:] + "."
    epilog = "options about plugins, as of every command: -p no:NAME, -p NAME, --plugin FILE, --strict-plugins"
    return argparse.ArgumentParser(prog=f"fvd {name}", description=description, epilog=epilog), configure


def _unknown_command(name: str, plugins: Plugins) -> UsageError:
    from fvd.plugins.missing import catalogue

    known = [*COMMANDS, *plugins.names("command")]
    message = f"unknown command {name!r}{did_you_mean(name, known)}; commands: {', '.join(known)}"
    unusable = [record for record in plugins.records if not record.usable and record.answers_to(name)]
    hints = [record.verdict() for record in unusable]
    distribution = catalogue()["command"].get(name)
    if distribution and not unusable:
        hints.append(f"It is provided by {distribution}: python -m pip install {distribution}")
    return UsageError("\n".join([message, *hints]))


def _exit_status(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    print(stop.code, file=sys.stderr)
    return 1


def _damaged_lists(error: Exception) -> str:
    """What to tell where a library, such as a part of torch, has failed on a list of entry points that cannot be read; fvd can
    do without, and cannot keep all of them from looking. Empty for other exceptions."""
    step = error.__traceback__
    while step is not None and not str(step.tb_frame.f_globals.get("__name__", "")).startswith("importlib.metadata"):
        step = step.tb_next
    if step is None:
        return ""
    from fvd.plugins.installed import damaged_entry_points

    damaged = damaged_entry_points()
    cures = [f"{it.reason}\n{it.cure}" for it in damaged]
    return "\n".join(["a library cannot be imported beside a damaged installation", *cures]) if damaged else ""


def _name_the_plugin(error: Exception, args: Arguments) -> None:
    """Add a line to an unexpected exception's traceback: whose code it was, where a plugin's is on the stack."""
    if "plugins" not in vars(args):  # not loaded, so no plugin's code has run
        return
    owners = {record.module.partition(".")[0]: record for record in args.plugins.records if record.usable}
    culprit: PluginRecord | None = None
    step = error.__traceback__
    while step is not None:
        package = str(step.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        culprit = owners.get(package, culprit) if package != "fvd" else culprit
        step = step.tb_next
    if culprit is not None:
        error.add_note(f"fvd: this came through plugin {culprit}; if it is a bug, report it to its authors.")


def _accept_any_text(stream: object) -> None:
    """Terminals and pipes that cannot show a character show a question mark; a listing never fails over a ✓."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
