"""How many fields a serialized request has, before it is parsed into objects that take fifty times their bytes."""

from serveprune.errors import InvalidArgument

MAX_FIELDS = 1_000_000
"""Each becomes some hundred bytes at the most; elements of a packed tensor do not count."""
_UNCHECKED_BYTES = 2**16

_NESTED: dict[int, dict[int, dict[int, object]]] = {5: {5: {}}, 6: {}}
"""Field numbers of ``ModelInferRequest`` that hold repeated fields themselves: inputs and their contents, outputs."""
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


def check_field_count(serialized: bytes, *, limit: int = MAX_FIELDS) -> None:
    """Refuse a message with more fields than any request has; what is no message is left to the parser.

    Raises:
        InvalidArgument: There are more than ``limit``.
    """
    if len(serialized) <= _UNCHECKED_BYTES:
        return
    try:
        counted = _count(serialized, 0, len(serialized), _NESTED, limit)
    except (IndexError, ValueError):
        return
    if counted > limit:
        raise InvalidArgument(
            f"expected at most {limit} fields in one message, got more; send tensors in raw_input_contents"
        )


def _count(message: bytes, position: int, end: int, nested: dict[int, dict], limit: int) -> int:  # type: ignore[type-arg]
    counted = 0
    while position < end and counted <= limit:
        counted += 1
        key, position = _varint(message, position)
        kind = key & 7
        if kind == _VARINT:
            _, position = _varint(message, position)
        elif kind == _LENGTH:
            length, position = _varint(message, position)
            inner = nested.get(key >> 3)
            if inner is not None:
                counted += _count(message, position, min(position + length, end), inner, limit - counted)
            position += length
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            position += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError("groups are not in use")
    return counted


def _varint(message: bytes, position: int) -> tuple[int, int]:
    byte = message[position]
    value, shift = byte & 0x7F, 7
    while byte & 0x80:
        position += 1
        byte = message[position]
        value |= (byte & 0x7F) << shift
        shift += 7
        if shift > 70:
            raise ValueError("a number of more than ten bytes")
    return value, position + 1
