"""Variants of a line of numpy, and jobs that remember how they ended: what a scheduler is fed with."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from serveprune.errors import ServePruneError
from serveprune.oip.tensor import Array
from serveprune.scheduling.job import Executable, Job, JobResult
from serveprune.scheduling.latency_model import LatencyModel
from serveprune.scheduling.latency_table import LatencyTable
from serveprune.scheduling.padding import Padding
from serveprune.scheduling.scheduler import Drop, Scheduler

PATIENCE_SECONDS = 30


class Clock:
    """Stands still until it is set."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def still() -> float:
    return 0.0


def measured(points: Mapping[tuple[int, int], float]) -> LatencyModel:
    """What batches take, without any correction."""
    return LatencyModel(LatencyTable(points), clock=still)


def seconds_per_row(seconds: float, *, rows: int = 64) -> LatencyModel:
    """Every row takes as long, so that large batches do not pay; up to ``rows`` they are known to be no worse."""
    return measured({(1, 1): seconds * 1.2, (rows, 1): seconds * rows})


@dataclass(eq=False)
class Variant:
    """Doubles its input as ``y`` and adds one to it as ``z``."""

    identity: tuple[str, str, str] = ("doubler", "1", "dense")
    batchable: bool = True
    padding: Padding | None = None
    fixed_length: int | None = None
    fixed_work: bool = False
    max_batch_size: int = 8
    max_batch_elements: int | None = None
    max_queue_delay_seconds: float = 0.0
    latency: LatencyModel = field(default_factory=lambda: measured({(1, 2): 0.01, (64, 2): 0.011}))
    output_names: tuple[str, ...] = ("y", "z")
    batches: list[list[float]] = field(default_factory=list)
    """The first element of each row, of each run."""

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        self.batches.append([float(row.flat[0]) for row in feeds["x"]])
        by_name = {"y": feeds["x"] * 2, "z": feeds["x"] + 1}
        return [by_name[name] for name in outputs]


@dataclass(eq=False)
class Held(Variant):
    """Computes only once it is let go."""

    error: Exception | None = None
    started: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        self.started.set()
        assert self.let_go.wait(PATIENCE_SECONDS)
        answers = super().run(feeds, outputs=outputs)
        if self.error:
            raise self.error
        return answers

    @property
    def batch_rows(self) -> list[int]:
        return [len(batch) for batch in self.batches]


class Asked:
    """A job, and how it ended."""

    def __init__(
        self,
        executable: Variant,
        value: float | Array = 0.0,
        *,
        rows: int = 1,
        width: int = 2,
        outputs: tuple[str, ...] = (),
        deadline: float = 1e6,
        target: float = float("inf"),
        priority: int = 2,
    ) -> None:
        x = value if isinstance(value, np.ndarray) else np.full((rows, width), value, np.float32)
        self.ends: list[JobResult | ServePruneError] = []
        self._ended = threading.Event()
        self.job = Job(
            executable, {"x": x}, len(x), deadline, self._end, outputs=outputs, target=target, priority=priority
        )

    def _end(self, result: JobResult | ServePruneError) -> None:
        self.ends.append(result)
        self._ended.set()

    def end(self) -> JobResult | ServePruneError:
        assert self._ended.wait(PATIENCE_SECONDS)
        assert len(self.ends) == 1
        return self.ends[0]

    def outputs(self) -> list[Array]:
        end = self.end()
        assert isinstance(end, JobResult), end
        return end.outputs

    def error(self) -> ServePruneError:
        end = self.end()
        assert isinstance(end, ServePruneError), end
        return end


@dataclass
class Events:
    """What a scheduler told."""

    batches: list[int] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)

    def on_batch(self, executable: Executable, rows: int) -> None:
        self.batches.append(rows)

    def on_drop(self, executable: Executable, reason: Drop) -> None:
        self.drops.append(reason)


def submit(scheduler: Scheduler, *asked: Asked) -> None:
    for one in asked:
        scheduler.submit(one.job)


def occupy(scheduler: Scheduler, variant: Held) -> Asked:
    """Keep the only executor busy, so that what follows has to queue."""
    first = Asked(variant)
    scheduler.submit(first.job)
    assert variant.started.wait(PATIENCE_SECONDS)
    return first


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()
