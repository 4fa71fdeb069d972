from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from serveprune.oip.tensor import Array

Signature = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Per input: name, dtype, and the sizes of all axes but the batch axis."""


class Executable(Protocol):
    """What a job runs on: a loaded variant."""

    @property
    def identity(self) -> tuple[str, str, str]:
        """Model, version and tier."""
        ...

    @property
    def batchable(self) -> bool:
        """Whether rows of different requests may share a run."""
        ...

    @property
    def max_batch_size(self) -> int:
        """Rows computed at once, at the most."""
        ...

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        """Compute the named outputs."""
        ...

    @property
    def output_names(self) -> tuple[str, ...]:
        """All outputs in graph order."""
        ...


@dataclass(frozen=True, slots=True)
class JobResult:
    """Outputs of one job, and the times it took in seconds."""

    outputs: list[Array]
    queue_seconds: float
    compute_seconds: float


@dataclass(slots=True, eq=False)
class Job:
    """Tensors of one request, ready to run.

    Attributes:
        feeds: Graph inputs; the leading axis is the batch axis where the executable is batchable.
        rows: Size of the batch axis.
        outputs: Wanted outputs; empty for all.
        deadline: Moment on the scheduler's clock after which the answer is worthless.
        abandoned: Nobody waits for the answer any more; set by `abandon`.
    """

    executable: Executable
    feeds: Mapping[str, Array]
    rows: int
    deadline: float
    outputs: tuple[str, ...] = ()
    enqueued: float = 0.0
    future: Future[JobResult] = field(default_factory=Future)
    abandoned: bool = field(default=False, init=False)
    signature: Signature = field(init=False)

    def __post_init__(self) -> None:
        self.signature = tuple((name, array.dtype.str, array.shape[1:]) for name, array in sorted(self.feeds.items()))

    def abandon(self) -> None:
        """Give the answer up: compute is spared if it has not begun, else what is left of it where it is in slices."""
        self.abandoned = True
        self.future.cancel()

    def wanted(self) -> tuple[str, ...]:
        """Names of the outputs in the order the caller wants them."""
        return self.outputs or self.executable.output_names
