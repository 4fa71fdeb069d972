import tracemalloc

import orjson
import pytest

from serveprune.oip.json_cost import parsing_bytes

ELEMENTS = 20_000


@pytest.mark.parametrize(
    "element",
    [b"1", b"0.5", b"0.123456", b"123456789", b"[]", b"{}", b'"a"', b'""', b"[1,2]", b"[0.5]", b"null", b'{"a":1}'],
)
def test_bound_is_above_what_the_objects_take_and_not_far_above(element: bytes) -> None:
    text = b"[" + b",".join([element] * ELEMENTS) + b"]"
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    document = orjson.loads(text)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(document) == ELEMENTS
    assert after - before <= parsing_bytes(text) <= 320 * ELEMENTS


def test_bound_holds_for_keys_that_all_differ() -> None:
    text = b"{" + b",".join(b'"%d":%d' % (index, index) for index in range(ELEMENTS)) + b"}"
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    document = orjson.loads(text)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(document) == ELEMENTS
    assert after - before <= parsing_bytes(text)


def test_part_of_a_body_is_counted_alone() -> None:
    text = b"[1,2,3]"

    assert parsing_bytes(memoryview(text + b",,,,")[: len(text)]) == parsing_bytes(text)
