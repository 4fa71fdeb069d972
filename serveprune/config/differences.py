"""Where two configs differ, as deep down as both have the same shape. Pure, and blind to what a setting means."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import StrEnum
from typing import Any

from pydantic import BaseModel

from serveprune.config.problem import KeyPath


class DifferenceKind(StrEnum):
    """Whether something is there before and after."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that is another one, or one entry of a list that came or went.

    Attributes:
        path: Where the value is; of an entry that went, where it was.
        old: ``None`` also where an entry came.
        new: ``None`` also where an entry went.
    """

    path: KeyPath
    kind: DifferenceKind
    old: Any
    new: Any


def differences(old: BaseModel, new: BaseModel, *, path: KeyPath = ()) -> Iterator[Difference]:
    """Yield what differs between two objects of one class, in the order of its fields.

    Values are compared after validation, so defaults that are written out make no difference.

    Args:
        old: Before.
        new: After.
        path: Where both of them are.
    """
    for name in type(old).model_fields:
        yield from _of_values(getattr(old, name), getattr(new, name), (*path, name))


def _of_values(old: Any, new: Any, path: KeyPath) -> Iterator[Difference]:
    if old == new:
        return
    if isinstance(old, BaseModel) and isinstance(new, BaseModel) and _has_one_shape(old, new):
        yield from differences(old, new, path=path)
    elif _is_list_of_named(old) and _is_list_of_named(new):
        yield from _of_entries(old, new, path)
    else:
        yield Difference(path, DifferenceKind.CHANGED, old, new)


def _of_entries(old: tuple[Any, ...], new: tuple[Any, ...], path: KeyPath) -> Iterator[Difference]:
    """Compare entries of the same name in the same order; every other one came or went."""
    matcher = SequenceMatcher(None, [one.name for one in old], [one.name for one in new], autojunk=False)
    for operation, old_start, old_end, new_start, new_end in matcher.get_opcodes():
        if operation == "equal":
            for before, after in zip(range(old_start, old_end), range(new_start, new_end), strict=True):
                yield from _of_values(old[before], new[after], (*path, after))
            continue
        for before in range(old_start, old_end):
            yield Difference((*path, before), DifferenceKind.REMOVED, old[before], None)
        for after in range(new_start, new_end):
            yield Difference((*path, after), DifferenceKind.ADDED, None, new[after])


def _has_one_shape(old: BaseModel, new: BaseModel) -> bool:
    """Tell whether both have the same keys; of a mapping with exactly one key, whether it is the same one."""
    return type(old) is type(new) and (not _takes_one_key(old) or _given(old) == _given(new))


def _takes_one_key(value: BaseModel) -> bool:
    extra = type(value).model_config.get("json_schema_extra")
    return isinstance(extra, Mapping) and extra.get("maxProperties") == 1


def _given(value: BaseModel) -> list[str]:
    return [name for name in type(value).model_fields if getattr(value, name) is not None]


def _is_list_of_named(value: Any) -> bool:
    """Tell whether entries can be told apart by name, as passes and inputs can."""
    return isinstance(value, tuple) and all(isinstance(entry, BaseModel) and hasattr(entry, "name") for entry in value)
