"""Values of options that several commands of `serveprune torchserve` have."""

from collections.abc import Callable
from typing import Any, TypeVar

from serveprune.config.server import Address, parse_address, parse_size
from serveprune.errors import InvalidArgument

_MOST_BYTES = 2**31 - 1
"""Java counts no further."""

_Value = TypeVar("_Value")


def address_of(text: str, *, option: str) -> Address:
    """Read ``host:port``.

    Raises:
        InvalidArgument: It is something else; the message names the option.
    """
    return _parsed(parse_address, text, option=option)


def size_of(text: str, *, option: str) -> int:
    """Read a number of bytes below 2 GiB, such as 16MiB.

    Raises:
        InvalidArgument: It is something else; the message names the option.
    """
    size = _parsed(parse_size, text, option=option)
    if size > _MOST_BYTES:
        raise InvalidArgument(f"{_named(option)}: expected less than 2GiB, got {text}")
    return size


def _parsed(parse: Callable[[Any], _Value], text: str, *, option: str) -> _Value:
    try:
        return parse(text)
    except ValueError as error:
        raise InvalidArgument(f"{_named(option)}: {error}") from None


def _named(option: str) -> str:
    return f"--{option.replace('_', '-')}"
