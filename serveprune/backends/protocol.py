from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from serveprune.oip.tensor import Array, TensorSpec


class Session(Protocol):
    """A loaded graph. ``run`` may be called from several threads at once."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Graph inputs in graph order."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Graph outputs in graph order."""
        ...

    @property
    def computes_in_caller(self) -> bool:
        """Whether a run is computed by the thread that asks for it, so that its processor time is the run's."""
        ...

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        """Compute the named outputs (all when none is named), in that order.

        Raises:
            InvalidArgument: The backend refuses the inputs (a shape that does not fit the graph).
            ResourceExhausted: They need more memory than there is.
            Internal: The backend failed.
        """
        ...

    def close(self) -> None:
        """Free the graph and its memory; idempotent."""
        ...


class Backend(Protocol):
    """Loads graphs on one kind of runtime."""

    name: str

    def load(self, path: Path, *, threads: int = 1) -> Session:
        """Load an ONNX file, or one that `artifacts.graph_file` has compressed.

        Raises:
            InvalidArgument: The file is not a graph this runtime can run; the message names the reason.
        """
        ...
