"""``docs/vocabulary.md``, made from the code that it describes."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator

import fvd
from fvd.specs import PRIMITIVES, SAMPLING_PRIMITIVES

HEAD = """\
# The vocabulary

<!-- Made from the code: FVD_WRITE_DOCS=1 pytest tests/test_docs.py. Do not edit. -->

A *primitive* is one operation that a family's adapter offers and a method calls. A family's descriptor says which it
`provides`, a method's which it `needs`, of the adapter itself and of each role; `fvd plugins matrix` and `fvd check` compare
the two without loading torch, and `fvd plugins check` proves that what a family declares is there and does what this page says.

On every public tensor latents are `[B, C, T, H, W]`, timesteps `t` are `[B]` in `[0, num_train_timesteps]`, one a sample, and
predictions are float32. `cond` is whatever the adapter makes it: nobody else looks inside. `adapter.bind(handle)` gives the
`predict…` verbs with the handle filled in, and checks shape and dtype of what comes back.

Base classes bring most of it: `fvd.FlowMatchingAdapter` and `fvd.DiffusionAdapter` what follows from `predict`,
`fvd.TextToVideoAdapter` and `fvd.TextToVideoDiffusionAdapter` also everything about text and pixels. What a family inherits
counts, and has to be declared too (`provides=fvd.TEXT_TO_VIDEO` says: everything on this page).
"""

BASES = ("FlowMatchingAdapter", "DiffusionAdapter", "TextToVideoAdapter", "TextToVideoDiffusionAdapter")


def vocabulary_page() -> str:
    return "\n".join([HEAD, *_sections(), *_sampling()])


def _sections() -> Iterator[str]:
    capabilities = dict.fromkeys(PRIMITIVES.values())
    for capability in capabilities:
        yield f"## {capability.capitalize()}\n"
        for name in (name for name, of in PRIMITIVES.items() if of == capability):
            yield _entry(name)


def _entry(name: str) -> str:
    owners = [base for base in BASES if vars(fvd.Adapter).get(name) is not _inherited(getattr(fvd, base), name)]
    given = f"\n\nComes with {', '.join(f'`{owner}`' for owner in owners)}." if owners else "\n\nWritten by the family."
    if name not in vars(fvd.Adapter):
        return f"### `{name}`\n\nAn attribute, int: timesteps run from 0, clean data, to this.{given}\n"
    function = vars(fvd.Adapter)[name]
    signature = str(inspect.signature(function)).replace("self, ", "").replace("(self)", "()")
    signature = re.sub(r"(: |-> )'([^']*)'", r"\1\2", signature).replace("'", '"')
    documentation = re.sub(r"``([^`]*)``", r"`\1`", inspect.cleandoc(function.__doc__))
    return f"### `{name}`\n\n```python\n{_wrapped(name + signature)}\n```\n\n{documentation}{given}\n"


def _inherited(base: type, name: str) -> object:
    return next((vars(cls)[name] for cls in base.__mro__ if name in vars(cls)), None)


def _wrapped(signature: str) -> str:
    return "\n".join(textwrap.wrap(signature, 120, subsequent_indent="    ", break_long_words=False))


def _sampling() -> Iterator[str]:
    yield "## What sampling needs\n"
    names = ", ".join(f"`{name}`" for name in sorted(SAMPLING_PRIMITIVES))
    yield f"Validation and `fvd sample` work on a family that provides {names}.\n"
