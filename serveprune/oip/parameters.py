import contextlib
import math
from typing import Any

from serveprune.errors import InvalidArgument
from serveprune.oip.messages import Parameter

_LONGEST_NUMBER = 40
"""Characters; what is longer says nothing more to a float."""


def decode_parameters(value: object, *, where: str) -> dict[str, Parameter]:
    """Return the ``parameters`` object of a request, an input or an output; empty when it is absent.

    Raises:
        InvalidArgument: It is no object, or one of its values is no boolean, number or string.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidArgument(f"{where}: expected an object, got {kind(value)}")
    for name, parameter in value.items():
        if not isinstance(parameter, bool | int | float | str):
            raise InvalidArgument(
                f"{where}: expected a boolean, a number or a string for {name!r}, got {kind(parameter)}"
            )
    return value


def flag(value: Any, *, where: str) -> bool:
    """Return a boolean, which the specification's generated REST client sends as ``1.0`` or ``0.0``.

    Raises:
        InvalidArgument: It is neither.
    """
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise InvalidArgument(f"{where}: expected true or false, got {value!r}")


def byte_count(value: Any, *, where: str) -> int:
    """Return a number of bytes, which may come as ``5.0``.

    Raises:
        InvalidArgument: It is no whole number, or negative.
    """
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if not whole or value < 0:
        raise InvalidArgument(f"{where}: expected a whole number of bytes, got {value!r}")
    return int(value)


def finite_number(value: object, *, where: str) -> float:
    """Return a number, which headers carry as text, and so do clients that know no other type.

    Raises:
        InvalidArgument: It is none, or not finite.
    """
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool) and len(str(value)) <= _LONGEST_NUMBER:
        # Python also reads 1_000, which is nobody's number but its own.
        with contextlib.suppress(ValueError, OverflowError):
            number = float("_" if isinstance(value, str) and "_" in value else value)
    if not math.isfinite(number):
        raise InvalidArgument(f"{where}: expected a finite number, got {str(value)[:_LONGEST_NUMBER]!r}")
    return number


def kind(value: object) -> str:
    """Return what JSON calls a value, for messages."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return names.get(type(value), "a number")
