"""What `fvd plugins show` says about config keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field

from fvd.config.document import keys_of, yaml_text
from fvd.config.models import StrictModel


class Inner(StrictModel):
    x: int = 1


class Model(StrictModel):
    ladder: tuple[Annotated[float, Field(ge=0)], ...]
    """The steps.
    Descending."""
    scale: Annotated[float, Field(gt=0)] | None = None
    kind: Literal["a", "b"] = "a"
    inner: Inner = Inner()
    betas: tuple[float, float] = (0.9, 0.999)


def test_every_key_with_type_default_and_description():
    assert [(str(key), key.description) for key in keys_of(Model)] == [
        ("ladder: [float, …]  (required)", "The steps. Descending."),
        ("scale: float | null = null", ""),
        ("kind: a | b = a", ""),
        ("inner:", ""),
        ("betas: [float, float] = [0.9, 0.999]", ""),
    ]
    assert keys_of(Model)[0].first_sentence == "The steps"
    assert [[str(inner) for inner in key.keys] for key in keys_of(Model)] == [[], [], [], ["x: int = 1"], []]


def test_defaults_are_plain_data_that_the_model_reads():
    plain = {key.name: key.default for key in keys_of(Model) if not key.required}
    assert plain == {"scale": None, "kind": "a", "inner": {"x": 1}, "betas": [0.9, 0.999]}
    assert Model.model_validate({"ladder": [1.0], **plain}) == Model(ladder=(1.0,))


@pytest.mark.parametrize(
    "value", [1e-5, 2.0, True, None, "no", "null", "a: b # c", "5", "", "过曝", [1, "x", None], {"a": [0.9]}, "two\nlines"]
)
def test_yaml_on_one_line_reads_back(value):
    text = yaml_text(value)
    assert "\n" not in text
    assert yaml.safe_load(f"key: {text}  # a remark") == {"key": value}


def raise_error() -> int:
    raise RuntimeError("no GPU")


class Odd(StrictModel):
    good: int = 1
    function: Callable[[], int] = raise_error
    made: int = Field(default_factory=raise_error)


def test_a_default_that_cannot_be_shown_is_a_problem_of_its_key():
    good, function, made = keys_of(Odd)
    assert str(good) == "good: int = 1"
    assert "P09" in str(function)
    assert "RuntimeError: no GPU" in str(made)
    assert made.as_dict()["default"] is None
