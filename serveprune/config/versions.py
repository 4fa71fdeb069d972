"""Which version of a model is higher than which, and which of them are served. Pure."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from serveprune.config.names import NAME_PATTERN
from serveprune.config.problem import description

LATEST = "latest"
ALL = "all"

_DIGITS = re.compile(r"(\d+)", re.ASCII)


def version_order(version: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Return what versions are sorted by, the lowest first.

    Digits that follow one another are compared as one number, all else as text, and text is lower than a number: 10 is
    higher than 9, 1.10 than 1.9, v2 than v1, and 1 than beta. Of two that only differ in leading zeros the longer one
    is lower.
    """
    parts = tuple(
        (1, int(part), "") if part.isdecimal() and part.isascii() else (0, 0, part)
        for part in _DIGITS.split(version)
        if part
    )
    return parts, version


def _version_policy(value: Any) -> Any:
    match value:
        case "latest" | "all":
            return value
        case {"latest": int() as count, **others} if not others and not isinstance(count, bool) and count > 0:
            return {LATEST: count}
        case list() | tuple() if value and all(
            isinstance(each, str) and re.match(NAME_PATTERN, each) for each in value
        ):
            return tuple(dict.fromkeys(value))
    raise ValueError(
        f"expected latest, all, {{latest: COUNT}} or a list of versions (in quotes), got {description(value)}"
    )


VersionPolicy = Annotated[
    str | dict[str, int] | tuple[str, ...],
    BeforeValidator(_version_policy),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": [LATEST, ALL]},
                {
                    "type": "object",
                    "properties": {LATEST: {"type": "integer", "minimum": 1, "description": "How many."}},
                    "required": [LATEST],
                    "additionalProperties": False,
                },
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        }
    ),
]
"""`latest`, `all`, how many of the latest, or which ones."""


def served_versions(versions: Iterable[str], policy: str | Mapping[str, int] | tuple[str, ...]) -> list[str]:
    """Return the versions that a policy has served, the lowest first, and none that is not there."""
    ordered = sorted(versions, key=version_order)
    if policy == ALL:
        return ordered
    if policy == LATEST:
        return ordered[-1:]
    if isinstance(policy, Mapping):
        return ordered[-policy[LATEST] :]
    return [version for version in ordered if version in policy]
