"""What `fvd --help` prints: core's commands, and those of plugins with where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import fvd
from fvd.errors import FvdError

if TYPE_CHECKING:
    from fvd.cli.main import Arguments
    from fvd.plugins import Plugins

_HEAD = """\
usage: fvd [options] COMMAND ...

Finetune video diffusion models and distil them into few-step generators.
"""

_OPTIONS = """
options:
  -h, --help        show this help; `fvd COMMAND --help` for a command's own
  --version         show the version

options about plugins, repeatable, before or after the command:
  -p no:NAME        do not load this one
  -p NAME           load this one, which is loaded on request only
  --plugin FILE     load this Python file as a plugin
  --strict-plugins  stop if anything is wrong with a plugin
"""


def print_overview(args: Arguments, own_commands: Mapping[str, str]) -> None:
    """Never fails: plugins that cannot be loaded are a line at the end. own_commands: core's, with their summaries."""
    print(f"{_HEAD}\ncommands:")
    for name, summary in own_commands.items():
        print(f"  {name:<13}  {summary}")
    trouble = ""
    try:
        _print_plugin_commands(args.plugins, own_commands)
        trouble = _describe_trouble(args.plugins)
    except FvdError as error:  # a misspelt name in FVD_PLUGINS must not hide the help
        trouble = str(error)
    print(f"{_OPTIONS}\nfvd-core {fvd.__version__}")
    if trouble:
        print(trouble)


def _print_plugin_commands(plugins: Plugins, own_commands: Mapping[str, str]) -> None:
    rows = []
    for spec in plugins.specs("command"):
        owner = plugins.owner(spec)
        if spec.name not in own_commands:
            rows.append((plugins.name_of(spec), f"{spec.summary}  [{owner.distribution} {owner.version}]"))
    if rows:
        print("\ncommands of plugins:")
    for name, summary in sorted(rows):
        print(f"  {name:<13}  {summary}")


def _describe_trouble(plugins: Plugins) -> str:
    unusable = [record for record in plugins.records if not record.usable and record.state != "disabled"]
    if not unusable:
        return ""
    names = ", ".join(f"{record.name} ({record.state})" for record in unusable)
    return f"Plugins that cannot be used: {names}; `fvd plugins list` says why."
