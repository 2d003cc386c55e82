"""The run file, schema v2: its models, YAML with line numbers, overrides, older spellings, and all problems at once."""

from __future__ import annotations

import os

# When it makes its first model, pydantic looks for plugins of its own among the entry points of all distributions, and
# imports them: one damaged list of whatever distribution, or one such plugin that fails, would end every command that
# reads a run file. The models here want none. Whoever does sets the variable.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
