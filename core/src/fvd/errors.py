"""What goes wrong, told to the person who has to mend it.

    FvdError                 anything a user can mend; the command line prints it and exits with 1
    ├── ConfigError          the run file; carries every Problem found in it
    ├── PluginError          a plugin cannot be found, loaded or trusted
    ├── DataError            clips, captions, parquet files
    ├── ModelError           a model folder that cannot be read, or is of another kind
    └── CheckpointError      saving, resuming, an output directory of another run

An exception that is not an FvdError is a bug in fvd or in a plugin, and is shown with its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal, get_args

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One finding about a run file: where it is, what is wrong, and what to do about it."""

    message: str
    key: str = ""
    """Dotted path in the run file, ``training.learning_rate``; empty for the file as a whole."""
    file: str = ""
    line: int | None = None
    """Counted from 1; None where the key is not in the file (an omission, or a ``--set``)."""
    cure: str = ""
    severity: Severity = "error"

    def __post_init__(self) -> None:
        # Plugins make them too, and one that cannot be printed or sorted would end a command.
        texts = {"message": self.message, "key": self.key, "file": self.file, "cure": self.cure}
        wrong = [name for name, text in texts.items() if not isinstance(text, str)]
        if wrong or not (self.line is None or isinstance(self.line, int)):
            raise TypeError(f"Problem: {', '.join([f'{name} must be a text' for name in wrong] or ['line must be a number'])}")
        if self.severity not in get_args(Severity):
            raise ValueError(f"Problem: severity must be one of {', '.join(get_args(Severity))}, got {self.severity!r}")

    def __str__(self) -> str:
        place = self.file + (f":{self.line}" if self.line else "")
        parts = [part for part in (place, self.severity, self.key) if part]
        text = ": ".join(parts) + ": " + self.message
        return f"{text}\n    {self.cure}" if self.cure else text

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class FvdError(Exception):
    """A failure that the user can mend. ``cure`` says how, in one or two sentences or a command."""

    def __init__(self, message: str, *, cure: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.message}\n{self.cure}" if self.cure else self.message


class ConfigError(FvdError):
    """A run file that cannot be run. ``problems`` holds all of them, not the first."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class PluginError(FvdError):
    """A plugin is missing, broken, ambiguous, or does not keep its contract."""


class DataError(FvdError):
    """Data that cannot be read or must not be trained on."""


class ModelError(FvdError):
    """A model that cannot be loaded."""


class CheckpointError(FvdError):
    """A checkpoint that cannot be written, read, or continued from."""


def mistake_in_code(whose: str) -> str:
    """The cure of what only a plugin's authors can mend. whose: ``the method's``."""
    return f"This is a mistake in {whose} code; report it to its authors, unless it is yours."


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate closest in spelling to ``word``, or None when none is close."""
    lowered = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return lowered[matches[0]] if matches else None


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` or nothing: a suffix for messages about unknown names."""
    match = nearest(word, candidates)
    return f" (did you mean {match!r}?)" if match else ""
