"""YAML to plain data, with the line of every key, and duplicate keys reported."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fvd.errors import Problem

KeyPath = tuple[str, ...]


@dataclass
class Document:
    """Plain data and where each key came from: ``places[("training", "seed")] == ("run.yaml", 12)``.

    readable: whether the text was a YAML mapping at all; if not, ``problems`` says why and ``data`` is empty.
    """

    data: dict[str, Any]
    places: dict[KeyPath, tuple[str, int | None]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    readable: bool = True

    def locate(self, key: KeyPath, default_file: str) -> tuple[str, int | None]:
        """File and line of ``key``, or of its nearest parent that is in a file."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.places:
                return self.places[key[:length]]
        return default_file, None


def read_yaml(text: str, file: str) -> Document:
    """Parse one YAML document (safe tags only). Syntax errors and duplicate keys become problems."""
    document = Document({})
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        return Document({}, problems=[_character_problem(error, text, file)], readable=False)
    try:
        node = loader.get_single_node()
        if node is not None:
            data = _construct(loader, node, (), document, file)
            document.data = {} if data is None else data  # `---` and no more
    except yaml.YAMLError as error:
        return Document({}, problems=[_syntax_problem(error, file)], readable=False)
    finally:
        loader.dispose()
    if not isinstance(document.data, dict):
        problem = Problem(message="must be a mapping of `key: value` lines", file=file, line=1)
        return Document({}, problems=[problem], readable=False)
    return document


def _syntax_problem(error: yaml.YAMLError, file: str) -> Problem:
    if not isinstance(error, yaml.MarkedYAMLError):
        return Problem(message=f"not valid YAML: {error}", file=file)
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    return Problem(message=f"not valid YAML: {error.problem or error.context}", file=file, line=line)


def _character_problem(error: yaml.reader.ReaderError, text: str, file: str) -> Problem:
    """A control character, as a crash in the middle of a write may leave them."""
    message = f"not valid YAML: the character U+{ord(text[error.position]):04X} is not allowed"
    line = text.count("\n", 0, error.position) + 1
    return Problem(message=message, file=file, line=line, cure="Remove it.")


def read_yaml_file(path: Path) -> Document:
    return read_yaml(path.read_text(encoding="utf-8"), str(path))


def _construct(loader: yaml.SafeLoader, node: yaml.Node, path: KeyPath, document: Document, file: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        explicit = {id(key) for key, _ in node.value}
        loader.flatten_mapping(node)
        return _construct_mapping(loader, node, explicit, path, document, file)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, (*path, str(index)), document, file) for index, item in enumerate(node.value)]
    return loader.construct_object(node, deep=True)


def _construct_mapping(
    loader: yaml.SafeLoader, node: yaml.MappingNode, explicit: set[int], path: KeyPath, document: Document, file: str
) -> dict[str, Any]:
    data: dict[str, Any] = {}
    first_lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        key = str(loader.construct_object(key_node, deep=True))
        line = key_node.start_mark.line + 1
        if key in first_lines and id(key_node) in explicit:
            dotted = ".".join((*path, key))
            message = f"this key is there twice (first on line {first_lines[key]})"
            document.problems.append(Problem(message=message, key=dotted, file=file, line=line, cure="Keep one of the two."))
        first_lines[key] = line
        document.places[(*path, key)] = (file, line)
        data[key] = _construct(loader, value_node, (*path, key), document, file)
    return data
