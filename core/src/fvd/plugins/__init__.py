"""The plugin host: what is installed, whether it can be used, and who provides what.

    discovery   entry points and metadata of distributions; nothing of a plugin is imported
    selection   which of them the user has switched off, or asked for
    local       a plugin that is one file
    loading     one plugin: import, check its hooks, collect its descriptors; a failure stays its own
    hooks       what a plugin implements, checked
    required    what a distribution declares that it needs
    faults      a plugin's exception in one line, with a cure
    pages       what each code means: a page of Markdown for each
    weight      whether its module is light
    records     what is known of one plugin
    registry    `Plugins`: all of them together; names to descriptors to objects
    refusal     plugins that cannot be left aside
    missing     what to tell a person whose name was not found
    fit         which methods run on which families
    findings    what is wrong though every plugin is usable
    installed   installations that are out of date or hidden
    trace       what each plugin costs
    lock        which plugins a run has used
    sources     where an installed plugin comes from
    beside      what a plugin file uses of its folder
    drift       what is not as a lock says

Light: the standard library and pluggy; packaging where a version range has to be checked.
"""

from __future__ import annotations

from fvd.plugins.records import PluginRecord as PluginRecord
from fvd.plugins.registry import PluginOptions as PluginOptions
from fvd.plugins.registry import Plugins as Plugins
from fvd.plugins.registry import load_plugins as load_plugins

__all__ = ["PluginOptions", "PluginRecord", "Plugins", "load_plugins"]
