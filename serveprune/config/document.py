"""YAML text to plain data that remembers its lines.

Scalars follow YAML 1.2: only `true` and `false` are truth values, dates and `12:30` are text, `1e-3` is a number.
Nothing but mappings, lists, text, numbers, truth values and null can come out, whatever tags the text holds.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from serveprune.config.expansion import expanded
from serveprune.config.problem import KeyPath, Problem, description

_MAX_DEPTH = 32
_MAX_VALUES = 100_000
_TAG = "tag:yaml.org,2002:"


class _CoreLoader(yaml.SafeLoader):
    """Parser and resolver of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own class attribute, replaced)


for _name, _pattern, _first_characters in (
    ("null", r"null|Null|NULL|~|", [*"nN~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
    ("merge", r"<<", ["<"]),
):
    _CoreLoader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first_characters)


@dataclass(frozen=True, slots=True)
class Document:
    """Plain data, and for every key path the line (from 1) on which it stands."""

    data: Any
    lines: Mapping[KeyPath, int]
    problems: tuple[Problem, ...]

    def line(self, path: KeyPath) -> int:
        """Return the line of the value, or of the nearest one around it that is there."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def parse_document(text: str, *, environment: Mapping[str, str]) -> Document:
    """Parse YAML, expanding `${NAME}` in text values; what is wrong lands in `Document.problems`."""
    try:
        root = yaml.compose(text, Loader=_CoreLoader)
        if root is None:
            return Document(None, {}, ())
        reader = _Reader(environment)
        data = reader.value(root, ())
    except yaml.YAMLError as error:
        return Document(None, {}, (_syntax_problem(error, text),))
    except _TooLarge as error:
        return Document(None, {}, (error.problem,))
    except RecursionError:
        return Document(None, {}, (Problem((), "expected a few levels of nesting, got hundreds", 1),))
    except (ValueError, OverflowError):
        # PyYAML lets these through.
        message = "expected YAML, got an escape beyond Unicode or an absurd version directive"
        return Document(None, {}, (Problem((), message, 1),))
    return Document(data, reader.lines, tuple(reader.problems))


def _syntax_problem(error: yaml.YAMLError, text: str) -> Problem:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        return Problem(
            (), ": ".join(filter(None, ("expected YAML, got a syntax error", error.context, error.problem))), line
        )
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return Problem((), f"expected text, got the character U+{error.character:04X}", line)
    return Problem((), f"expected YAML, got a syntax error: {error}", 1)


class _TooLarge(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class _Reader:
    """Turns YAML nodes into plain data, once per document."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self._environment = environment
        self._values = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self._count(node)
        if len(path) > _MAX_DEPTH:
            raise _TooLarge(
                Problem(path[:3], f"expected at most {_MAX_DEPTH} levels of nesting, got more", _line(node))
            )
        self.lines.setdefault(path, _line(node))
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(element, (*path, index)) for index, element in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        return self._report(path, f"expected a value without a tag, got {_tag_text(node)}", node)

    def _count(self, node: yaml.Node) -> None:
        # This bound and that on depth also end aliases that hold themselves, or that multiply level by level.
        self._values += 1
        if self._values > _MAX_VALUES:
            raise _TooLarge(Problem((), f"expected at most {_MAX_VALUES} values, got more", _line(node)))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        first_lines: dict[str, int] = {}
        values: dict[str, Any] = {}
        inherited: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                inherited += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            key = self._key(key_node, path)
            if key is None:
                continue
            if key in first_lines:
                self._report(
                    (*path, key), f"expected each key once, got it again (first on line {first_lines[key]})", key_node
                )
                continue
            first_lines[key] = self.lines[*path, key] = _line(key_node)
            values[key] = self.value(value_node, (*path, key))
        for base in inherited:
            values = {**self._inherited(base, path, known=values), **values}
        return values

    def _inherited(self, node: yaml.Node, path: KeyPath, *, known: Mapping[str, Any]) -> dict[str, Any]:
        self._count(node)
        if not isinstance(node, yaml.MappingNode):
            self._report((*path, "<<"), "expected a mapping or a list of mappings to take keys from", node)
            return {}
        pairs = [pair for pair in node.value if not isinstance(pair[0].value, str) or pair[0].value not in known]
        return self._mapping(yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark), path)

    def _key(self, node: yaml.Node, path: KeyPath) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._report(path, "expected text as a key, got a list or a mapping", node)
            return None
        text = str(node.value)
        if node.tag != _TAG + "str":
            self._report((*path, text), f"expected text as a key, got {text or 'nothing'}; put it in quotes", node)
        return text

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        if node.tag in (_TAG + "str", _TAG + "merge"):  # `<<` as a value is text like any other
            try:
                return expanded(node.value, environment=self._environment)
            except ValueError as error:
                return self._report(path, str(error), node)
        read = _SCALARS.get(node.tag)
        if read is None:
            return self._report(path, f"expected a value without a tag, got {_tag_text(node)}", node)
        try:
            return read(node.value)
        except ValueError:
            return self._report(
                path, f"expected what its tag says, got {description(node.value)} as {_tag_text(node)}", node
            )

    def _report(self, path: KeyPath, message: str, node: yaml.Node) -> None:
        self.problems.append(Problem(path, message, _line(node)))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _tag_text(node: yaml.Node) -> str:
    return f"the tag {description(node.tag.replace(_TAG, '!!'))}"


def _null(text: str) -> None:
    if text not in ("", "~") and text.lower() != "null":
        raise ValueError(text)


def _truth_value(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _whole_number(text: str) -> int:
    prefix = text[:2]
    return int(text[2:], 16 if prefix == "0x" else 8) if prefix in ("0x", "0o") else int(text)


def _number(text: str) -> float:
    word = text.lstrip("+-").lower()
    return float(text.lower().replace(".inf", "inf") if word == ".inf" else "nan" if word == ".nan" else text)


_SCALARS: Mapping[str, Callable[[str], Any]] = {
    _TAG + "null": _null,
    _TAG + "bool": _truth_value,
    _TAG + "int": _whole_number,
    _TAG + "float": _number,
}
