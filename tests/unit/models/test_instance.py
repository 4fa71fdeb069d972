from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from serveprune.errors import InvalidArgument, Unavailable
from serveprune.models.instance import BatchSettings, Instance
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array, TensorSpec
from serveprune.scheduling.padding import Padding

ROWS = (TensorSpec("x", Datatype.FP32, (-1, -1)),)
FIXED = (TensorSpec("x", Datatype.FP32, (2, -1)),)


class FunctionSession:
    """A session around one function of one array."""

    computes_in_caller = True

    def __init__(self, function: Callable[[Array], Array], specs: tuple[TensorSpec, ...] = ROWS) -> None:
        self.function, self.inputs, self.outputs = function, specs, specs
        self.closed = 0

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        return [self.function(feeds["x"])]

    def close(self) -> None:
        self.closed += 1


def refuse(x: Array) -> Array:
    raise InvalidArgument("this graph is choosy")


@pytest.mark.parametrize(
    ("function", "specs", "batchable"),
    [
        (lambda x: x * 2, ROWS, True),
        (lambda x: x - x.mean(axis=0), ROWS, False),
        (lambda x: x.sum(axis=0, keepdims=True), ROWS, False),
        (lambda x: x * 2, FIXED, False),
        (refuse, ROWS, False),
    ],
)
def test_warm_finds_out_whether_rows_may_share_a_run(
    function: Callable[[Array], Array], specs: tuple[TensorSpec, ...], batchable: bool
) -> None:
    instance = Instance(FunctionSession(function, specs), identity=("m", "1", "dense"), batches=BatchSettings(4))
    instance.warm()
    assert instance.batchable is batchable


@pytest.mark.parametrize(
    ("function", "specs", "rows"),
    [(lambda x: x * 2, ROWS, {1, 2, 4}), (lambda x: x - x.mean(axis=0), ROWS, {1}), (refuse, ROWS, set())],
)
def test_warm_times_the_batches_there_will_be(
    function: Callable[[Array], Array], specs: tuple[TensorSpec, ...], rows: set[int]
) -> None:
    instance = Instance(FunctionSession(function, specs), identity=("m", "1", "dense"), batches=BatchSettings(4))
    instance.warm()
    assert {count for count, _ in instance.latency.table.measured} == rows


def test_warm_takes_the_padding_of_dense() -> None:
    dense = Instance(FunctionSession(lambda x: x), identity=("m", "1", "dense"), batches=BatchSettings(4))
    dense.batchable, dense.padding = True, Padding({"x": 0}, frozenset({"x"}))
    tier = Instance(
        FunctionSession(lambda x: x),
        identity=("m", "1", "int8"),
        batches=BatchSettings(4, max_elements=64),
        dense=dense,
    )
    tier.warm()
    assert tier.padding is dense.padding
    assert {size for size in tier.latency.table.measured if size[0] > 1} == {(2, 8), (4, 8), (2, 32)}


@pytest.mark.parametrize("size", [7, 28, 224])
def test_warm_sees_that_rows_are_mixed_whatever_their_size(size: int) -> None:
    specs = (TensorSpec("x", Datatype.FP32, (-1, 1, size, size)),)
    mixing = FunctionSession(lambda x: x - x.mean(axis=0, keepdims=True), specs)
    instance = Instance(mixing, identity=("m", "1", "dense"), batches=BatchSettings(4))
    instance.warm()
    assert not instance.batchable


def looks_back(x: Array) -> Array:
    """Leave the first row as it is, and add it to those behind it."""
    behind: Array = np.concatenate([np.zeros_like(x[:1]), np.repeat(x[:1], len(x) - 1, axis=0)])
    return x + behind


@pytest.mark.parametrize("datatype", [Datatype.FP32, Datatype.INT64, Datatype.UINT8])
@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_warm_compares_every_row(datatype: Datatype, width: int) -> None:
    specs = (TensorSpec("x", datatype, (-1, width)),)
    for function, batchable in ((looks_back, False), (lambda x: x[::-1], False), (lambda x: x, True)):
        instance = Instance(FunctionSession(function, specs), identity=("m", "1", "dense"), batches=BatchSettings(4))
        instance.warm()
        assert instance.batchable is batchable


def test_made_up_masks_are_never_of_zeros_alone() -> None:
    specs = tuple(TensorSpec(name, Datatype.INT64, (-1, -1)) for name in ("input_ids", "attention_mask"))
    instance = Instance(FunctionSession(lambda x: x, specs), identity=("m", "1", "dense"), batches=BatchSettings(4))
    example = instance.example(5)
    assert all(array.any(axis=1).all() for array in example.values())
    assert all(set(np.unique(array)) == {0, 1} for array in example.values())


@pytest.mark.parametrize("apart", [True, False])
def test_warm_takes_the_word_of_dense_when_a_tier_moves_with_its_neighbours(apart: bool) -> None:
    dense = Instance(FunctionSession(lambda x: x), identity=("m", "1", "dense"), batches=BatchSettings(4))
    dense.batchable = apart
    tier = FunctionSession(lambda x: x / np.abs(x).sum())
    instance = Instance(tier, identity=("m", "1", "int8"), batches=BatchSettings(4), dense=dense)
    instance.warm()
    assert instance.batchable is apart


def test_instance_is_closed_once_when_it_is_retired_and_its_last_user_leaves() -> None:
    session, closings = FunctionSession(lambda x: x), []
    instance = Instance(
        session, identity=("m", "1", "dense"), batches=BatchSettings(4), on_close=lambda: closings.append("closed")
    )
    instance.acquire()
    instance.retire()
    instance.retire()
    assert session.closed == 0
    with pytest.raises(Unavailable):
        instance.acquire()
    instance.release()
    assert (session.closed, closings) == (1, ["closed"])
