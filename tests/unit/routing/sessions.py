"""What a router's instances run on, which it never runs."""

from collections.abc import Mapping, Sequence

import numpy as np

from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array, TensorSpec


class Identity:
    """The smallest session there can be."""

    inputs = (TensorSpec("x", Datatype.FP32, (-1, 2)),)
    outputs = (TensorSpec("y", Datatype.FP32, (-1, 2)),)
    computes_in_caller = True

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        return [np.asarray(feeds["x"])]

    def close(self) -> None:
        return None
