"""The base of all config models, and types of keys that existing files write in several ways. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationInfo, field_validator


class StrictModel(BaseModel):
    """Frozen, and no key that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """``max_train_steps: true`` would else be 1 step."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError(f"must not be {str(value).lower()}")
        return value


def _split_numbers(value: object) -> object:
    """``"8"`` and ``"4, 8"`` and ``8`` are lists, as existing files write them."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [value]
    return value


def _two_numbers(value: object) -> object:
    numbers = _split_numbers(value)
    if not isinstance(numbers, (list, tuple)) or len(numbers) != 2:
        raise ValueError("needs two numbers, for example [0.9, 0.999]")
    return numbers


def first_number(value: object) -> object:
    """``"5.0"`` is a number; of ``"3.0,5.0"`` existing programs use the first."""
    numbers = _split_numbers(value)
    return numbers[0] if isinstance(numbers, list) and numbers else value


Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], BeforeValidator(_two_numbers)]
StepCounts = Annotated[tuple[PositiveInt, ...], Field(min_length=1), BeforeValidator(_split_numbers)]
LrSchedulerName = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
