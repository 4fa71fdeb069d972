import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from serveprune.config.problem import description

LONGEST_SECONDS = 366 * 24 * 3600

_UNIT_SECONDS = {"h": 3600, "m": 60, "s": 1}
_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([hms])")
_TEXT = re.compile(rf"(?:{_PART.pattern})+")
_PLAIN = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_EXPECTED = "expected a duration above 0 and of at most a year, such as 90s, 10m or 1h30m"

DURATION_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?[hms])+$|^[0-9]+(\.[0-9]+)?$"},
    ],
    "format": "span",
    "examples": ["90s", "10m", "1h"],
}


def parse_duration(value: Any) -> float:
    """Return the seconds of ``90s``, ``10m``, ``1h30m``, or of a number, which counts seconds.

    Raises:
        ValueError: It is something else, nothing, or more than a year.
    """
    seconds = _seconds(value)
    if seconds is None or not 0 < seconds <= LONGEST_SECONDS:
        raise ValueError(f"{_EXPECTED}, got {description(value)}")
    return seconds


def _seconds(value: Any) -> float | None:
    if isinstance(value, str):
        text = value.strip()
        if _TEXT.fullmatch(text):
            return float(sum(Decimal(number) * _UNIT_SECONDS[unit] for number, unit in _PART.findall(text)))
        # Text without a unit is let through for the sake of `${NAME}`.
        return float(text) if _PLAIN.fullmatch(text) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) <= LONGEST_SECONDS else None


def duration_text(seconds: float) -> str:
    """Write seconds as a config does: ``1h30m``, ``10m``, ``0.5s``."""
    whole, text = int(seconds), ""
    if whole != seconds:
        return f"{seconds:.3g}s"
    for unit, size in _UNIT_SECONDS.items():
        count, whole = divmod(whole, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


Duration = Annotated[float, BeforeValidator(parse_duration), WithJsonSchema(DURATION_SCHEMA)]
"""Seconds; text such as `90s`, `10m`, `1h` or `1h30m` is accepted."""
