import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KeyPath = tuple[str | int, ...]
"""Keys and list positions that lead from the top of a document to a value."""

_LONGEST_SHOWN = 80
_MOST_KEYS_SHOWN = 6
_PLAIN_KEY = re.compile(r"[\w.-]+")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong at one place: what was expected there, and what came."""

    path: KeyPath
    message: str
    line: int | None = None

    def text(self, file: Path) -> str:
        """Return ``FILE:LINE: key.path: message``."""
        where = f"{file}:{self.line}" if self.line is not None else str(file)
        return ": ".join(filter(None, (where, path_text(self.path), self.message)))


def path_text(path: KeyPath) -> str:
    """Write a key path as people do: ``models.minilm.tiers[1]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{_shortened(repr(part))}]"
    return text


def description(value: Any) -> str:
    """Say what a value of a document is, in a few words on one line."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case Mapping():
            keys = [str(key) for key in value]
            shown = ", ".join(keys[:_MOST_KEYS_SHOWN]) + (", ..." if len(keys) > _MOST_KEYS_SHOWN else "")
            return f"a mapping with the keys {_shortened(shown)}" if keys else "an empty mapping"
        case list() | tuple():
            return f"a list of {len(value)}" if value else "an empty list"
        case int() if value.bit_length() > 256:
            return "a huge number"
        case _:
            return _shortened(repr(value))


def suggestion(word: Any, known: Iterable[str]) -> str:
    """Return ``; did you mean `x`?`` when the word is close to a known one, else an empty string."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."
