"""The keys of a config model, for people: `fvd plugins show` prints them."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def describe_keys(model: type[BaseModel]) -> list[tuple[str, str]]:
    """(``key: type = default``, description) for each key of ``model``, in its order."""
    return [
        (f"{name}: {_type_name(info.annotation)}{_default_of(info)}", _description_of(info))
        for name, info in model.model_fields.items()
    ]


def _type_name(annotation: object) -> str:
    """``Annotated[float, Gt(0)] | None`` -> ``float | None``: the limits are said when they are broken."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin in (Union, UnionType):
        return " | ".join(_type_name(argument) for argument in arguments)
    if origin is Literal:
        return " | ".join(map(repr, arguments))
    if annotation is NoneType:
        return "None"
    if annotation is Ellipsis:
        return "…"
    if isinstance(origin, type):
        return f"{origin.__name__}[{', '.join(_type_name(argument) for argument in arguments)}]"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _default_of(info: FieldInfo) -> str:
    if info.is_required():
        return "  (required)"
    default = info.get_default(call_default_factory=True)
    text = f"{default.model_dump()}" if isinstance(default, BaseModel) else repr(default)
    return f" = {text if len(text) <= 60 else text[:57] + '…'}"


def _description_of(info: FieldInfo) -> str:
    return " ".join((info.description or "").replace("``", "`").split())
