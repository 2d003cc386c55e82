"""The keys of a config model, for people: what `fvd plugins show` prints and `fvd plugins example` writes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from fvd.plugins.faults import describe


@dataclass(frozen=True)
class Key:
    """One key of a section. ``default`` is plain data, and None where the key is required, or where there is a ``problem``: why
    the default cannot be said. ``description`` is one line. ``keys``: of a key that is a section of its own."""

    name: str
    type: str
    required: bool
    default: object
    description: str
    problem: str = ""
    keys: tuple[Key, ...] = ()

    def __str__(self) -> str:
        """``flow_shift: float = 3.0``."""
        if self.keys:
            return f"{self.name}:"
        if self.required:
            return f"{self.name}: {self.type}  (required)"
        if self.problem:
            return f"{self.name}: {self.type}  ({self.problem})"
        text = yaml_text(self.default)
        return f"{self.name}: {self.type} = {text if len(text) <= 60 else text[:57] + '…'}"

    @property
    def first_sentence(self) -> str:
        return re.split(r"(?<!eq\.)(?<=\.)\s", self.description, maxsplit=1)[0].rstrip(".")

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "type": self.type,
            "required": self.required,
            "default": self.default,
            "description": self.description,
            **({"problem": self.problem} if self.problem else {}),
            **({"keys": [key.as_dict() for key in self.keys]} if self.keys else {}),
        }


def keys_of(model: type[BaseModel]) -> list[Key]:
    """Every key of ``model``, in its order. A default that is no plain data is a problem of its key."""
    return [_key_of(name, info) for name, info in model.model_fields.items()]


def _key_of(name: str, info: FieldInfo) -> Key:
    default, problem = None, ""
    try:
        default = _default_of(info)
        yaml_text(default)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a function, or whatever a default_factory raises
        default, problem = None, f"its default cannot be shown: {describe(error)} [P09]"
    section = info.annotation
    keys = tuple(keys_of(section)) if isinstance(section, type) and issubclass(section, BaseModel) and not problem else ()
    return Key(name, _type_name(section), info.is_required(), default, _description_of(info), problem, keys)


def yaml_text(value: object) -> str:
    """Plain data as YAML on one line: ``[0.9, 0.999]``."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    line = text.removesuffix("...\n").strip()
    # YAML folds line breaks inside a text over lines of its own; JSON, which is YAML too, escapes them.
    return json.dumps(value, ensure_ascii=False) if "\n" in line else line


def _type_name(annotation: object) -> str:
    """``Annotated[float, Gt(0)] | None`` -> ``float | null``: the limits are said when they are broken."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin in (Union, UnionType):
        return " | ".join(_type_name(argument) for argument in arguments)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if annotation is NoneType:
        return "null"
    if annotation is Ellipsis:
        return "…"
    if origin is tuple:
        return f"[{', '.join(_type_name(argument) for argument in arguments)}]"
    if isinstance(origin, type):
        return f"{origin.__name__}[{', '.join(_type_name(argument) for argument in arguments)}]"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _default_of(info: FieldInfo) -> object:
    return None if info.is_required() else to_jsonable_python(info.get_default(call_default_factory=True))


def _description_of(info: FieldInfo) -> str:
    return " ".join((info.description or "").replace("``", "`").split())
