from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest

from serveprune.errors import InvalidArgument
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array, Tensor, TensorSpec
from serveprune.serving.feeds import graph_feeds, needs_preprocessing, preprocess

SPECS = (TensorSpec("ids", Datatype.INT64, (-1, -1)), TensorSpec("mask", Datatype.INT64, (-1, -1)))


def ids(*shape: int, name: str = "ids", dtype: str = "int64") -> Tensor:
    return Tensor.of(name, np.ones(shape, dtype))


def texts(values: list[bytes], shape: tuple[int, ...] | None = None) -> Tensor:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return Tensor("text", Datatype.BYTES, array.reshape(shape or (len(values),)))


class Lengths:
    """Preprocessing that turns a text into as many ones as it has bytes."""

    kind: Literal["text"] = "text"
    input = TensorSpec("text", Datatype.BYTES, (-1,))
    targets = ("ids", "mask")
    padding = {"ids": 0, "mask": 0}  # noqa: RUF012 - the protocol wants a plain attribute

    def __call__(self, values: Sequence[bytes]) -> dict[str, Array]:
        width = max(map(len, values))
        array = np.array([[1] * len(value) + [0] * (width - len(value)) for value in values], np.int64)
        return {"ids": array, "mask": array}


def test_feeds_are_found_by_name_when_the_order_differs() -> None:
    feeds, rows = graph_feeds([ids(3, 5, name="mask"), ids(3, 5)], SPECS, max_rows=3)
    assert (sorted(feeds), rows) == (["ids", "mask"], 3)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([ids(1, 5)], "missing input 'mask'; the model takes: ids, mask"),
        ([ids(1, 5), ids(1, 5, name="mask"), ids(1, name="extra")], "unknown input 'extra'"),
        ([ids(1, 5, dtype="int32"), ids(1, 5, name="mask")], "input ids: expected datatype INT64, got INT32"),
        ([ids(5), ids(1, 5, name="mask")], r"input ids: expected shape \[-1, -1\] \(-1 is any size\), got \[5\]"),
        ([ids(0, 5), ids(0, 5, name="mask")], r"at least one element, got shape \[0, 5\]"),
        ([ids(2, 5), ids(3, 5, name="mask")], "disagree on the number of rows: ids 2, mask 3"),
    ],
)
def test_feeds_are_refused_when_they_do_not_fit(tensors: list[Tensor], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        graph_feeds(tensors, SPECS, max_rows=8)


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_texts_become_graph_inputs(shape: tuple[int, ...]) -> None:
    sent = [texts([b"ab", b"abc"], shape)]
    assert needs_preprocessing(sent, Lengths())
    feeds, rows = graph_feeds(preprocess(sent, Lengths(), max_rows=2), SPECS, max_rows=2)
    assert rows == 2
    assert feeds["mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([texts([b"a"]), ids(1, 5)], "input text already stands for ids; send one or the other"),
        ([ids(1, 5, name="text")], "input text: expected datatype BYTES, got INT64"),
        ([texts([b"a"] * 4, (2, 2))], r"input text: expected shape \[N\] or \[N, 1\], got \[2, 2\]"),
    ],
)
def test_texts_are_refused_when_they_cannot_be_meant(tensors: list[Tensor], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        preprocess(tensors, Lengths(), max_rows=8)


def test_feeds_are_refused_when_there_are_too_many_rows() -> None:
    with pytest.raises(InvalidArgument, match=r"at most 2 rows .*server\.max_request_rows.*, got 3; send several"):
        graph_feeds([ids(3, 5), ids(3, 5, name="mask")], SPECS, max_rows=2)


def test_texts_are_refused_unread_when_there_are_too_many() -> None:
    class Unreadable(Lengths):
        def __call__(self, values: Sequence[bytes]) -> dict[str, Array]:
            raise AssertionError("read")

    with pytest.raises(InvalidArgument, match=r"at most 2 rows .* got 3"):
        preprocess([texts([b"a", b"b", b"c"])], Unreadable(), max_rows=2)
