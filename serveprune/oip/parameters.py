from typing import Any

from serveprune.errors import InvalidArgument
from serveprune.oip.messages import Parameter


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


def kind(value: object) -> str:
    """Return what JSON calls a value, for messages."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return names.get(type(value), "a number")
