"""pydantic's findings in the words of a run file."""

from __future__ import annotations

import re
from typing import Any, TypeGuard, get_args

from pydantic import BaseModel

from fvd.errors import did_you_mean

_MESSAGES = {
    "missing": "is required and not given",
    "model_type": "must be a mapping of `key: value` lines",
    "dict_type": "must be a mapping of `key: value` lines",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
}


def explain_detail(detail: Any, model: type[BaseModel], field_path: tuple[str, ...]) -> tuple[str, str]:
    """(message, cure) for one of pydantic's error details at ``field_path`` inside ``model``."""
    if detail["type"] == "extra_forbidden":
        fields = list(_model_at(model, field_path[:-1]).model_fields)
        hint = did_you_mean(field_path[-1], fields)
        return f"unknown key{hint}", "" if hint else f"Keys here: {', '.join(fields) or 'none'}."
    missing_inside = detail["type"] == "missing" and len(detail["loc"]) > len(field_path)
    if detail["type"] == "missing" and not missing_inside:
        return _MESSAGES["missing"], _description(model, field_path)
    message = _MESSAGES.get(detail["type"]) or re.sub(r"^(Value error, |Input )", "", detail["msg"])
    if missing_inside:
        message = f"{detail['loc'][-1]} is required and not given"
    given = detail["input"]
    shown = "" if isinstance(given, dict) else f", got {'nothing' if given is None else repr(given)}"
    return message + shown, _description(model, field_path)


def _model_at(model: type[BaseModel], path: tuple[str, ...]) -> type[BaseModel]:
    """The model of a nested section; the last one known where the path leads into something else."""
    for name in path:
        info = model.model_fields.get(name)
        inner = [] if info is None else [it for it in (info.annotation, *get_args(info.annotation)) if _is_model(it)]
        if not inner:
            return model
        model = inner[0]
    return model


def _is_model(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _description(model: type[BaseModel], field_path: tuple[str, ...]) -> str:
    owner, name = _model_at(model, field_path[:-1]), field_path[-1] if field_path else ""
    info = owner.model_fields.get(name)
    return f"{name}: {info.description.replace('``', '`')}" if info and info.description else ""
