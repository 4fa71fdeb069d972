"""Every single edit of a config: one value, wherever it lies, replaced by another valid one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from serveprune.config.problem import KeyPath
from serveprune.config.root import ServePruneConfig


@dataclass(frozen=True)
class Edit:
    """A value for one place of a document."""

    path: KeyPath
    value: Any

    def apply(self, document: dict[str, Any]) -> None:
        place: Any = document
        for part in self.path[:-1]:
            place = place[part]
        place[self.path[-1]] = self.value


def edited(config: ServePruneConfig, *edits: Edit) -> ServePruneConfig | None:
    """The config with these edits; ``None`` where that is no valid one."""
    document = _document(config)
    for edit in edits:
        edit.apply(document)
    try:
        return ServePruneConfig.model_validate(document)
    except ValidationError:
        return None


def single_edits(config: ServePruneConfig, *, new_file: Path) -> Iterator[Edit]:
    """One valid edit that makes a difference for each value that has one.

    ``new_file`` is named where there was none; elsewhere the name begins with ``other-``.
    """
    for path, value in _leaves(_document(config), ()):
        for candidate in _candidates(value, new_file):
            after = edited(config, Edit(path, candidate))
            if after is not None and after != config:
                yield Edit(path, candidate)
                break


def _document(config: ServePruneConfig) -> dict[str, Any]:
    # With all defaults written out it would not be valid: some exclude each other.
    return config.model_dump(exclude_unset=True)


def valued_paths(config: ServePruneConfig) -> set[KeyPath]:
    """Every place that has a value."""
    return {path for path, _ in _leaves(_document(config), ())}


def _leaves(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """What is no mapping and no list of mappings, and what may become one."""
    match value:
        case dict():
            for key, each in value.items():
                yield from _leaves(each, (*path, key))
        case list() | tuple() if any(isinstance(each, dict) for each in value):
            for index, each in enumerate(value):
                yield from _leaves(each, (*path, index))
        case _:
            yield path, value


def _candidates(value: Any, new_file: Path) -> Iterator[Any]:
    match value:
        case bool():
            yield not value
        case Path():
            yield value.with_name(f"other-{value.name}")
        case int() | float():
            yield from (value + 1, value - 1, value / 2, value * 3, 0.9)
        case NoneType():
            yield from (7, 0.5, new_file, {"file": new_file})
            yield from _choices(ServePruneConfig)
        case str():
            yield from _choices(ServePruneConfig)
            yield from ("other:factory", "127.0.0.1:9999", "1:4", "other", "http://127.0.0.1:9999")
            # A digest backwards is another one.
            yield value[::-1]
        case tuple() | list():
            # The name of a profile serves wherever any word does.
            yield from (value[::-1], (*value, "lean"), value[:1], (0.5,), (7, 8), ("variance",), ("first",))


def _choices(annotation: Any) -> list[str]:
    """Every word that a config may choose from, wherever."""
    return sorted({word for word in _words(annotation) if isinstance(word, str)})


def _words(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for field in annotation.model_fields.values():
            yield from _words(field.annotation)
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for argument in get_args(annotation):
            yield from _words(argument)
