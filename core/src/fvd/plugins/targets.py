"""Import what a descriptor names, and say whose fault it is when that fails."""

from __future__ import annotations

import contextlib
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fvd.errors import FvdError, PluginError, did_you_mean
from fvd.plugins.discovery import ask_the_authors
from fvd.plugins.faults import complete, describe, place_in, reinstall, same_package
from fvd.plugins.trace import measure

if TYPE_CHECKING:
    from fvd.plugins.registry import PluginRecord


def import_target(record: PluginRecord, what: str, target: str) -> Any:
    """The object at ``package.module:attribute``. Raises PluginError (P09) naming plugin, version and target."""
    module_name, _, attribute = target.partition(":")
    subject = f"{what} of plugin {record} cannot be loaded: target {target}"
    try:
        # What a plugin prints must not end up in the output of `--json`.
        with contextlib.redirect_stdout(sys.stderr), measure(str(record), f"target {target}"):
            return _attribute(record, subject, import_module(module_name), attribute)
    except (FvdError, KeyboardInterrupt):
        raise
    # A plugin that calls sys.exit(), or whose extension panics, must not end the program either.
    except BaseException as error:
        name = error.name if isinstance(error, ModuleNotFoundError) else None
        if not isinstance(name, str):
            message = f"{subject}: {describe(error)}{place_in(module_name, error)} [P09]"
            cure = ask_the_authors(record.distribution)
        elif same_package(name, module_name):
            message = f"{subject}: there is no module {name!r} [P09]"
            cure = f"The installation is incomplete, or the plugin is at fault: {reinstall(record.distribution)}"
        else:
            message = f"{subject}: it needs the module {name!r}, which is not installed [P09]"
            cure = complete(record.distribution, name)
        raise PluginError(message, cure=cure) from error


def _attribute(record: PluginRecord, subject: str, module: ModuleType, attribute: str) -> Any:
    """Perhaps made only now: a module may have a ``__getattr__`` that imports."""
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        hint = did_you_mean(attribute, dir(module))
        message = f"{subject}: the module has no {attribute!r}{hint} [P09]"
        raise PluginError(message, cure=ask_the_authors(record.distribution)) from error
