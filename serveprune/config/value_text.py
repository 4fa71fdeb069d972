"""Values of a validated config as data for machines, and as one short line for people."""

import json
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from pydantic import BaseModel, ByteSize
from pydantic_core import to_jsonable_python

from serveprune.config.canary import Pause
from serveprune.config.duration import duration_text
from serveprune.config.server import Address

_LONGEST_SHOWN = 80
_LONGEST_SECTION = 400
"""Of what comes or goes as a whole, such as a canary with its steps and guards."""
_SHOWN_BEFORE_A_DIFFERENCE = 20
_SIZES = tuple(
    (base**power, f"{letter}{'i' if base == 1024 else ''}B")
    for power, letter in ((4, "T"), (3, "G"), (2, "M"), (1, "K"))
    for base in (1024, 1000)
)
"""Bytes of a unit and its name, the largest first."""
_CUT = "..."


def plain_value(value: Any) -> Any:
    """Return a value as JSON holds it, as one would write it into a file: what is at its default is left out.

    A secret (pydantic's `SecretStr`) becomes asterisks.
    """
    match value:
        case BaseModel():
            return {
                name: plain_value(getattr(value, name))
                for name, field in type(value).model_fields.items()
                # `kind` says which of two mappings this is, so a file needs it though it has a default.
                if name == "kind" or getattr(value, name) != field.get_default(call_default_factory=True)
            }
        case Pause():
            # Before lists: it is a tuple as well.
            return {} if value.duration_seconds is None else duration_text(value.duration_seconds)
        case Address():
            return str(value)
        case Mapping():
            return {str(key): plain_value(each) for key, each in value.items()}
        case tuple() | list():
            return [plain_value(each) for each in value]
        case _:
            return to_jsonable_python(value)


def value_text(value: Any) -> str:
    """Return a value on one line of at most 400 characters, much as a file would say it."""
    return _cut_end(_whole_text(value), longest=_LONGEST_SECTION)


def changed_texts(old: Any, new: Any) -> tuple[str, str]:
    """Return two values as `value_text` does, but in 80 characters: long ones show where they begin to differ."""
    if old is None or new is None:
        return value_text(old), value_text(new)
    texts = _whole_text(old), _whole_text(new)
    if max(map(len, texts)) > _LONGEST_SHOWN:
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False)))
        begin = max(0, same - _SHOWN_BEFORE_A_DIFFERENCE)
        if begin > len(_CUT):
            texts = _CUT + texts[0][begin:], _CUT + texts[1][begin:]
    return _cut_end(texts[0]), _cut_end(texts[1])


def _whole_text(value: Any) -> str:
    if isinstance(value, ByteSize):
        return _size_text(value)
    return _flow(plain_value(value))


def _flow(value: Any) -> str:
    """Write plain data in YAML's flow style, with the quotes left out where nobody misses them."""
    match value:
        case None:
            return "none"
        case str():
            return value if value.isprintable() and value.strip() == value != "" else json.dumps(value)
        case Mapping():
            return "{" + ", ".join(f"{_flow(key)}: {_flow(each)}" for key, each in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_flow, value)) + "]"
        case float() if value.is_integer():
            return f"{value:.0f}"
        case _:
            return json.dumps(value)


def _size_text(size_bytes: int) -> str:
    for unit_bytes, unit in _SIZES:
        if size_bytes % unit_bytes == 0:
            return f"{size_bytes // unit_bytes}{unit}"
    return f"{size_bytes}"


def _cut_end(text: str, *, longest: int = _LONGEST_SHOWN) -> str:
    return text if len(text) <= longest else text[: longest - len(_CUT)] + _CUT
