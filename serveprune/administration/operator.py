from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serveprune.errors import InvalidArgument
from serveprune.oip.parameters import kind

_LONGEST = {"who": 128, "why": 1024}
"""Keys, and the most characters of each."""


@dataclass(frozen=True, slots=True)
class Operator:
    """Who asks for a change, and why, in their own words: for the audit log, not for access."""

    who: str
    why: str = ""


def operator_of(fields: Mapping[str, Any], *, where: str, needs_name: bool = True) -> Operator:
    """Return what a request says of its operator.

    Args:
        fields: ``who``, and perhaps ``why``.
        where: Stands before messages.
        needs_name: Whether ``who`` may not be left out.

    Raises:
        InvalidArgument: Something else stands there, or nobody is named.
    """
    unknown = [name for name in fields if name not in _LONGEST]
    if unknown:
        raise InvalidArgument(f"{where}: expected no other keys than who and why, got {str(unknown[0])[:40]!r}")
    operator = Operator(*(_text(fields, name, where=where) for name in _LONGEST))
    if needs_name and not operator.who:
        raise InvalidArgument(f"{where}: who: expected the name of the operator who acts, for the audit log, got none")
    return operator


def _text(fields: Mapping[str, Any], name: str, *, where: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise InvalidArgument(f"{where}: {name}: expected text, got {kind(value)}")
    text = value.strip()
    if len(text) > _LONGEST[name]:
        raise InvalidArgument(f"{where}: {name}: expected at most {_LONGEST[name]} characters, got {len(text)}")
    # A line of a log is one line, and a terminal that shows it obeys no orders in it.
    if not text.isprintable():
        raise InvalidArgument(f"{where}: {name}: expected one line of printable characters, got others")
    return text
