import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from serveprune.errors import ServePruneError
from serveprune.oip.tensor import Array
from serveprune.scheduling.latency_model import LatencyModel
from serveprune.scheduling.padding import Padding
from serveprune.scheduling.urgency import DEFAULT_PRIORITY

Signature = tuple[tuple[str, tuple[int, ...]], ...]
"""Per input: name, and the sizes of all axes but the batch axis and a padded one; empty where the graph fixes them."""


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
    def padding(self) -> Padding | None:
        """How rows of different length may share one; ``None`` where they cannot."""
        ...

    @property
    def fixed_length(self) -> int | None:
        """The length of every row (see `Job.length`) where the graph fixes it, and with it all other sizes."""
        ...

    @property
    def fixed_work(self) -> bool:
        """Whether every row takes the same work, whatever is in it: so that a forecast can be relied on."""
        ...

    @property
    def max_batch_size(self) -> int:
        """Rows computed at once, at the most."""
        ...

    @property
    def max_batch_elements(self) -> int | None:
        """Rows times their length computed at once, at the most."""
        ...

    @property
    def max_queue_delay_seconds(self) -> float:
        """How long a job may wait for others to fill its batch."""
        ...

    @property
    def latency(self) -> LatencyModel:
        """What batches take."""
        ...

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        """Compute the named outputs."""
        ...

    @property
    def output_names(self) -> tuple[str, ...]:
        """All outputs in graph order."""
        ...


@dataclass(slots=True)
class JobResult:
    """Outputs of one job, the times it took in seconds, and how many rows were computed together with its own.

    The rows of a job that was computed in parts are those of its largest run.
    """

    outputs: list[Array]
    queue_seconds: float
    compute_seconds: float
    batch_rows: int


Done = Callable[["JobResult | ServePruneError"], None]
"""Called once, with the answer or with why there is none; must not raise."""


def _ignore(result: "JobResult | ServePruneError") -> None:
    """Take what came after the end."""


@dataclass(slots=True, eq=False)
class Job:
    """Tensors of one request, ready to run.

    Attributes:
        feeds: Graph inputs; the leading axis is the batch axis where the executable is batchable.
        rows: Size of the batch axis.
        deadline: Moment on the scheduler's clock after which the answer is worthless.
        done: Told how it ended.
        outputs: Wanted outputs; empty for all.
        target: Moment by which the answer is wanted; at the latest the deadline.
        priority: See `urgency.due`.
        length: Of each row: of its sequence where the executable pads, else the elements of the largest input's row.
        abandoned: Nobody waits for the answer any more.
        parts: What is computed in the place of a job that is larger than a batch may be.
        enqueued, due, alone_seconds, cost_seconds: Set by the scheduler: when it came, its place in the order, what
            its rows take by themselves, and what they add to a batch that is worthwhile.
    """

    executable: Executable
    feeds: Mapping[str, Array]
    rows: int
    deadline: float
    done: Done
    outputs: tuple[str, ...] = ()
    target: float = float("inf")
    priority: int = DEFAULT_PRIORITY
    abandoned: bool = False
    parts: tuple["Job", ...] = ()
    enqueued: float = 0.0
    due: float = 0.0
    alone_seconds: float = 0.0
    cost_seconds: float = 0.0
    length: int = field(init=False)
    signature: Signature = field(init=False)

    def __post_init__(self) -> None:
        self.target = min(self.target, self.deadline)
        fixed = self.executable.fixed_length
        if fixed is not None:
            self.length, self.signature = fixed, ()
        else:
            self.length = row_length(self.feeds, self.executable.padding)
            self.signature = _signature(self.feeds, self.executable.padding)

    def end(self, result: "JobResult | ServePruneError") -> None:
        """Tell how it ended, once, and let go of the tensors and of whoever was told.

        Whoever holds the job on must keep neither alive, and what holds each other only the collector would free.
        """
        self.feeds = {}
        done, self.done = self.done, _ignore
        done(result)

    def wanted(self) -> tuple[str, ...]:
        """Names of the outputs in the order the caller wants them."""
        return self.outputs or self.executable.output_names


def row_length(feeds: Mapping[str, Array], padding: Padding | None) -> int:
    """Return how long the rows of a request are; see `Job.length`."""
    length = padding.length_of(feeds) if padding is not None else None
    if length is None:
        length = max((math.prod(array.shape[1:]) for array in feeds.values()), default=1)
    return length


def _signature(feeds: Mapping[str, Array], padding: Padding | None) -> Signature:
    padded = padding.values if padding is not None and padding.length_of(feeds) is not None else ()
    return tuple(sorted((name, array.shape[2 if name in padded else 1 :]) for name, array in feeds.items()))
