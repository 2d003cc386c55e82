"""The plugin host: what is installed, whether it can be used, and who provides what.

    discovery   entry points and metadata of distributions; nothing of a plugin is imported
    selection   which of them the user has switched off
    loading     one plugin: import, check its hooks, collect its descriptors; a failure stays its own
    registry    `Plugins`: all of them together; names to descriptors to objects
    missing     what to tell a person whose name was not found
    fit         which methods run on which families
    lock        which plugins a run has used

Light: the standard library and pluggy; packaging where a version range has to be checked.
"""

from __future__ import annotations

from fvd.plugins.registry import PluginRecord as PluginRecord
from fvd.plugins.registry import Plugins as Plugins
from fvd.plugins.registry import load_plugins as load_plugins

__all__ = ["PluginRecord", "Plugins", "load_plugins"]
