from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from serveprune.errors import InvalidArgument, Unavailable
from serveprune.models.instance import Instance
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array, TensorSpec

ROWS = (TensorSpec("x", Datatype.FP32, (-1, -1)),)
FIXED = (TensorSpec("x", Datatype.FP32, (2, -1)),)


class FunctionSession:
    """A session around one function of one array."""

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
    instance = Instance(FunctionSession(function, specs), identity=("m", "1", "dense"), max_batch_size=4)
    instance.warm()
    assert instance.batchable is batchable


@pytest.mark.parametrize("apart", [True, False])
def test_warm_takes_the_word_of_dense_when_a_tier_moves_with_its_neighbours(apart: bool) -> None:
    dense = Instance(FunctionSession(lambda x: x), identity=("m", "1", "dense"), max_batch_size=4)
    dense.batchable = apart
    tier = FunctionSession(lambda x: x / np.abs(x).sum())
    instance = Instance(tier, identity=("m", "1", "int8"), max_batch_size=4, dense=dense)
    instance.warm()
    assert instance.batchable is apart


def test_instance_is_closed_once_when_it_is_retired_and_its_last_user_leaves() -> None:
    session, closings = FunctionSession(lambda x: x), []
    instance = Instance(
        session, identity=("m", "1", "dense"), max_batch_size=4, on_close=lambda: closings.append("closed")
    )
    instance.acquire()
    instance.retire()
    instance.retire()
    assert session.closed == 0
    with pytest.raises(Unavailable):
        instance.acquire()
    instance.release()
    assert (session.closed, closings) == (1, ["closed"])
