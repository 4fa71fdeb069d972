import random
from typing import Any

import numpy as np

from serveprune.scheduling.batch_policy import select_batch
from serveprune.scheduling.job import Job
from serveprune.scheduling.job_queue import JobQueue


class Variant:
    """What a job runs on, as far as a queue looks at it."""

    max_batch_size = 4

    def __init__(self, *, batchable: bool) -> None:
        self.batchable = batchable


def variant(*, batchable: bool = True) -> Any:
    return Variant(batchable=batchable)


def job(executable: Any, *, rows: int = 1, width: int = 2) -> Job:
    return Job(executable, {"x": np.zeros((rows, width), np.float32)}, rows, 1e9)


def test_batches_are_those_the_policy_selects_from_everything_that_waits() -> None:
    chance = random.Random(0)
    variants = [variant(), variant(), variant(batchable=False)]
    jobs = [job(chance.choice(variants), rows=chance.randint(1, 6), width=chance.choice((2, 3))) for _ in range(300)]
    queue = JobQueue()
    for one in jobs:
        queue.append(one)
    waiting = list(jobs)
    while waiting:
        expected = select_batch(waiting)
        assert queue.take_batch() == expected
        waiting = [one for one in waiting if one not in expected]
        assert len(queue) == len(waiting)


def test_jobs_of_other_variants_are_not_looked_at_when_a_batch_is_taken() -> None:
    class Counted(Job):
        reads = 0

        @property
        def rows(self) -> int:
            Counted.reads += 1
            return 1

        @rows.setter
        def rows(self, value: int) -> None:
            pass

    queue, first = JobQueue(), job(variant())
    queue.append(first)
    other = variant()
    for _ in range(1000):
        queue.append(Counted(other, {"x": np.zeros((1, 2), np.float32)}, 1, 1e9))
    assert queue.take_batch() == [first]
    assert Counted.reads == 0


def test_job_is_forgotten_when_it_is_discarded() -> None:
    queue, executable = JobQueue(), variant()
    jobs = [job(executable) for _ in range(3)]
    for one in jobs:
        queue.append(one)
    queue.discard(jobs[0])
    queue.discard(jobs[0])
    assert queue.take_batch() == jobs[1:]
    assert len(queue) == 0


def test_everything_is_handed_over_in_order_of_arrival() -> None:
    queue = JobQueue()
    jobs = [job(variant()) for _ in range(3)]
    for one in jobs:
        queue.append(one)
    assert queue.take_all() == jobs
    assert len(queue) == 0
