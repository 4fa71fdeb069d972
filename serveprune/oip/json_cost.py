_SCALAR_BYTES = 56
"""A number, its place in a list, and what the parser notes of it while it works."""
_CONTAINER_BYTES = 72
_STRING_BYTES = 72


def parsing_bytes(text: bytes | bytearray | memoryview) -> int:
    """Bound the memory that the objects of a JSON text take, from above and without parsing it.

    Most of a text becomes objects of several times its size: 128 MiB of ``[],`` would become 3 GiB.
    """
    counted = text if isinstance(text, bytes | bytearray) else bytes(text)
    containers = counted.count(b"[") + counted.count(b"{")
    # A value is followed by a comma, or is the last of its container; a key by a colon.
    scalars = counted.count(b",") + counted.count(b":") + containers + 1
    strings = counted.count(b'"') // 2
    return scalars * _SCALAR_BYTES + containers * _CONTAINER_BYTES + strings * _STRING_BYTES
