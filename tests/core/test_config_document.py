"""What `fvd plugins show` says about config keys."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fvd.config.document import describe_keys
from fvd.config.models import StrictModel


class Inner(StrictModel):
    x: int = 1


class Model(StrictModel):
    ladder: tuple[Annotated[float, Field(ge=0)], ...]
    """The steps."""
    scale: Annotated[float, Field(gt=0)] | None = None
    kind: Literal["a", "b"] = "a"
    inner: Inner = Inner()


def test_every_key_with_type_default_and_description():
    assert describe_keys(Model) == [
        ("ladder: tuple[float, …]  (required)", "The steps."),
        ("scale: float | None = None", ""),
        ("kind: 'a' | 'b' = 'a'", ""),
        ("inner: Inner = {'x': 1}", ""),
    ]
