"""Everything at once: many threads, two models of several variants, all kinds of jobs; nobody gets another's answer."""

import random
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from unit.scheduling.variants import PATIENCE_SECONDS, measured

from serveprune.errors import Cancelled, DeadlineExceeded, Internal, InvalidArgument, ServePruneError, Unavailable
from serveprune.oip.tensor import Array
from serveprune.scheduling.job import Executable, Job, JobResult
from serveprune.scheduling.latency_model import LatencyModel
from serveprune.scheduling.padding import Padding
from serveprune.scheduling.scheduler import Drop, Scheduler

OUTPUTS = ("tokens", "sums", "flag")
POISON = 10_000
THREADS, JOBS_OF_EACH = 8, 150


@dataclass(eq=False)
class Encoder:
    """Counts what the mask says counts; refuses one kind of row, and fails at another."""

    identity: tuple[str, str, str]
    factor: int
    batchable: bool = True
    padding: Padding | None = field(default_factory=lambda: Padding({"ids": 0, "mask": 0}, frozenset({"tokens"})))
    fixed_length: int | None = None
    fixed_work = False
    max_batch_size: int = 8
    max_batch_elements: int | None = None
    max_queue_delay_seconds: float = 0.0
    latency: LatencyModel = field(
        default_factory=lambda: measured({(1, 8): 5e-5, (8, 8): 9e-5, (1, 64): 8e-5, (8, 64): 4e-4})
    )
    output_names: tuple[str, ...] = OUTPUTS
    rows: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        ids, mask = feeds["ids"], feeds["mask"]
        if self.batchable:
            assert len(ids) <= self.max_batch_size
            assert self.max_batch_elements is None or len(ids) == 1 or ids.size <= self.max_batch_elements
        if (ids == POISON).any():
            raise InvalidArgument("poison")
        if (ids == POISON + 1).any():
            raise ZeroDivisionError
        with self.lock:
            self.rows += len(ids)
        by_name = {
            "tokens": ids * mask * self.factor,
            "sums": (ids * mask).sum(axis=1) * self.factor,
            "flag": feeds["flag"],
        }
        return [by_name[name] for name in outputs]


class Request:
    """One job: what it asks for, and how it ended."""

    def __init__(self, number: int, chance: random.Random, variants: Sequence[Encoder], now: float) -> None:
        self.number = number
        self.ends: list[JobResult | ServePruneError] = []
        self.ended = threading.Event()
        self.variant = chance.choice(variants)
        self.ids = np.array(
            [[chance.randrange(1, 1000) for _ in range(chance.randint(1, 60))]] * chance.choice((1, 1, 1, 2, 3, 9, 40))
        )
        self.ids = self.ids * np.arange(1, len(self.ids) + 1)[:, None] % 997
        self.poison = chance.random()
        if self.poison < 0.02:
            self.ids[-1, -1] = POISON + (self.poison < 0.01)
        feeds: dict[str, Array] = {
            "ids": self.ids,
            "mask": np.ones_like(self.ids),
            "flag": np.full((len(self.ids), 1), number),
        }
        self.job = Job(
            self.variant,
            feeds,
            len(self.ids),
            now + chance.choice((1e-4, 0.02, 100.0, 100.0, 100.0)),
            self.end,
            outputs=tuple(chance.sample(OUTPUTS, chance.randint(0, 3))),
            target=now + chance.choice((0.001, 0.1, float("inf"))),
            priority=chance.randint(1, 3),
        )
        self.leaves = chance.random() < 0.15

    def end(self, result: JobResult | ServePruneError) -> None:
        self.ends.append(result)
        self.ended.set()

    def check(self) -> str:
        """Return how it ended, having checked that it is the right end."""
        (end,) = self.ends
        if isinstance(end, InvalidArgument | Internal):
            assert self.poison < 0.02
            return "failed"
        if isinstance(end, ServePruneError):
            assert isinstance(end, Cancelled | DeadlineExceeded | Unavailable)
            return type(end).__name__
        assert self.poison >= 0.02
        expected = {
            "tokens": self.ids * self.variant.factor,
            "sums": self.ids.sum(axis=1) * self.variant.factor,
            "flag": np.full((len(self.ids), 1), self.number),
        }
        names = self.job.outputs or OUTPUTS
        assert len(end.outputs) == len(names)
        for name, output in zip(names, end.outputs, strict=True):
            np.testing.assert_array_equal(output, expected[name])
        return "answered"


@dataclass
class Told:
    rows: Counter[Executable] = field(default_factory=Counter)
    drops: Counter[Drop] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def on_batch(self, executable: Executable, rows: int) -> None:
        with self.lock:
            self.rows[executable] += rows

    def on_drop(self, executable: Executable, reason: Drop) -> None:
        with self.lock:
            self.drops[reason] += 1


def variants() -> list[Encoder]:
    return [
        Encoder(("encoder", "1", "dense"), 1),
        Encoder(("encoder", "1", "int8"), 2, max_batch_elements=100),
        Encoder(("encoder", "1", "lean"), 3, latency=measured({})),
        Encoder(("ranker", "1", "dense"), 5, batchable=False, padding=None),
        Encoder(("ranker", "1", "int8"), 7, padding=None, max_queue_delay_seconds=0.002),
    ]


@pytest.mark.parametrize("executors", [1, 2, 5])
@pytest.mark.parametrize("drain_seconds", [PATIENCE_SECONDS, 0.0])
def test_every_job_ends_once_and_as_it_should_when_everything_happens_at_once(
    executors: int, drain_seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    told, encoders = Told(), variants()
    scheduler = Scheduler(executors=executors, on_batch=told.on_batch, on_drop=told.on_drop)
    scheduler.share_out({"ranker": 2.0})
    clock = scheduler._clock
    requests: list[list[Request]] = [[] for _ in range(THREADS)]
    refused: list[Request] = []
    under_way = threading.Event()

    def ask(thread: int) -> None:
        chance = random.Random(thread)
        for index in range(JOBS_OF_EACH):
            request = Request(thread * JOBS_OF_EACH + index, chance, encoders, clock())
            try:
                scheduler.submit(request.job)
            except Unavailable:
                refused.append(request)
                return
            requests[thread].append(request)
            if index == JOBS_OF_EACH // 4:
                under_way.set()
            forecast = scheduler.forecast(request.variant, rows=request.job.rows, length=request.job.length)
            assert forecast.finish_seconds >= 0
            for other in chance.sample(requests[thread], min(3, len(requests[thread]))):
                if other.leaves:
                    scheduler.abandon(other.job)
            if chance.random() < 0.1:
                request.ended.wait(0.01)

    threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    if drain_seconds:
        for thread in threads:
            thread.join()
    else:
        assert under_way.wait(PATIENCE_SECONDS)
    stopped = scheduler.stop(drain_seconds=drain_seconds)
    for thread in threads:
        thread.join()

    everyone = [request for each in requests for request in each]
    for request in everyone:
        assert request.ended.wait(PATIENCE_SECONDS)
    assert scheduler.stop(drain_seconds=PATIENCE_SECONDS)
    for executor in scheduler._threads:
        executor.join(PATIENCE_SECONDS)
        assert not executor.is_alive()
    ends = Counter(request.check() for request in everyone)
    assert all(request.ends == [] for request in refused)
    assert len(scheduler._waiting) == 0
    assert all(scheduler._waiting.rows_waiting(encoder) == 0 for encoder in encoders)
    assert scheduler._waiting.seconds_ahead("encoder") == 0.0
    assert {encoder: encoder.rows for encoder in encoders if encoder.rows} == dict(told.rows)
    if drain_seconds:
        assert stopped
        assert ends["Unavailable"] == 0
        assert len(everyone) == THREADS * JOBS_OF_EACH
        # All kinds of ends were there.
        assert min(ends["answered"], ends["failed"], ends["Cancelled"], ends["DeadlineExceeded"]) > 0
    answered = sum(len(one.ids) for one in everyone if isinstance(one.ends[0], JobResult))
    assert sum(told.rows.values()) >= answered
    assert sum(told.drops.values()) >= ends["DeadlineExceeded"]
