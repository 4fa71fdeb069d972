from collections.abc import Mapping, Sequence
from typing import Protocol

from serveprune.oip.tensor import Array, TensorSpec


class RunnableGraph(Protocol):
    """What evaluation needs of a loaded graph; every backend session is one."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Graph inputs in graph order."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Graph outputs in graph order."""
        ...

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        """Compute the named outputs (all when none is named), in that order."""
        ...
