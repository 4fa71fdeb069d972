import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from unit.scheduling.variants import Variant, measured

from serveprune.scheduling.batch_policy import BatchLimits, rows_for_batch, select_batch
from serveprune.scheduling.fair_share import FairShare
from serveprune.scheduling.job import Job
from serveprune.scheduling.job_queue import QUICK_SECONDS, JobQueue, Taken
from serveprune.scheduling.padding import Padding
from serveprune.scheduling.urgency import due

INFINITY = float("inf")


def job(
    variant: Variant,
    *,
    rows: int = 1,
    width: int = 2,
    at: float = 0.0,
    target: float = INFINITY,
    deadline: float = 1e9,
    priority: int = 2,
) -> Job:
    """A job that has come, its place in the order and its costs set as the scheduler sets them."""
    x = np.zeros((rows, width), np.float32)
    one = Job(variant, {"x": x}, rows, deadline, lambda result: None, target=target, priority=priority)
    one.enqueued, one.due = at, due(enqueued=at, target=one.target, priority=one.priority)
    one.alone_seconds, one.cost_seconds = variant.latency.costs(one.rows, one.length)
    return one


def queue_of(jobs: Sequence[Job], *, weights: dict[str, float] | None = None) -> JobQueue:
    queue = JobQueue(FairShare(weights or {}))
    for one in jobs:
        queue.append(one)
    return queue


def take(queue: JobQueue, *, now: float = 0.0, **options: Any) -> Taken:
    return queue.take(now=now, **({"running_rows": 0, "executors": 1} | options))


def test_batches_are_those_the_policy_selects_from_everything_that_waits() -> None:
    """An oracle that looks at all jobs each time, where the queue keeps lanes."""
    chance = random.Random(0)
    latency = {"latency": measured({(1, 2): 0.001, (4, 2): 0.002, (4, 30): 0.01, (1, 30): 0.004})}
    padding = Padding({"x": 0}, frozenset())
    variants = [Variant(**latency), Variant(padding=padding, **latency), Variant(batchable=False, **latency)]  # type: ignore[arg-type]
    jobs = [
        job(
            chance.choice(variants),
            rows=chance.randint(1, 6),
            width=chance.choice((2, 3, 30)),
            at=chance.random(),
            target=chance.choice((INFINITY, chance.uniform(0, 2))),
        )
        for _ in range(300)
    ]
    queue = queue_of(jobs)
    waiting = sorted(jobs, key=lambda one: (one.due, jobs.index(one)))
    while waiting:
        head = waiting[0]
        model = head.executable.latency
        companions = [one for one in waiting if one.executable is head.executable and one.signature == head.signature]
        rows = rows_for_batch(
            present_rows=sum(one.rows for one in waiting) + 3,
            executors=2,
            quick_rows=model.table.quick_rows(head.length, seconds=QUICK_SECONDS),
            worthwhile_rows=model.worthwhile_rows(head.length),
            max_rows=8,
        )
        limits = BatchLimits(rows)
        if not head.executable.batchable:
            companions = [head]
        expected = select_batch(companions[: limits.candidates], limits=limits, seconds=model.expected_seconds, now=1.0)
        taken = take(queue, now=1.0, running_rows=3, executors=2)
        assert taken.batch == expected
        assert taken.seconds == model.expected_seconds(
            sum(one.rows for one in expected), max(one.length for one in expected)
        )
        waiting = [one for one in waiting if one not in expected]
        assert len(queue) == len(waiting)
        assert [queue.rows_waiting(variant) for variant in variants] == [
            sum(one.rows for one in waiting if one.executable is variant) for variant in variants
        ]
        assert queue.seconds_ahead("doubler") == pytest.approx(sum(one.cost_seconds for one in waiting))
    assert take(queue) == Taken([], [], [], 0.0, INFINITY)


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

    first, other = job(Variant(), at=-1.0), Variant()
    queue = queue_of([first])
    for _ in range(1000):
        queue.append(Counted(other, {"x": np.zeros((1, 2), np.float32)}, 1, 1e9, lambda result: None, target=0.0))
    Counted.reads = 0
    assert take(queue).batch == [first]
    assert Counted.reads == 0


def test_what_is_taken_directly_is_what_an_empty_queue_would_give() -> None:
    """An oracle: the same jobs through the queue. One batch of all of them, or nothing is taken directly."""
    chance = random.Random(1)
    latency = measured({(1, 2): 1e-5, (8, 2): 4e-5, (64, 2): 2.9e-4, (1, 30): 1e-4, (8, 30): 2e-4})
    variants = [
        Variant(latency=latency, fixed_work=True, max_batch_size=size, max_batch_elements=elements, batchable=batchable)
        for size, elements, batchable in ((64, None, True), (4, None, True), (64, 12, True), (64, None, False))
    ]
    taken_directly = 0
    for _ in range(500):
        chosen = chance.sample(variants, chance.choice((1, 1, 1, 2)))
        widths = chance.choice(((2,), (2,), (2, 30)))
        late = chance.choice((0.0, 0.0, 0.05))
        jobs = [
            job(
                chance.choice(chosen),
                rows=chance.choice((1, 1, 1, 2)),
                width=chance.choice(widths),
                target=1e-5 if chance.random() < late else 1.0,
                deadline=-1.0 if chance.random() < late else 1e9,
            )
            for _ in range(chance.randint(1, 12))
        ]
        directly = queue_of([]).take_directly(list(jobs), now=0.0)
        queued = queue_of(jobs).take_quick(now=0.0)
        if directly is None:
            assert len(jobs) > 1 or queued.expired or jobs[0].target < 1.0
            continue
        taken_directly += 1
        assert (directly.batch, directly.seconds, directly.expired, directly.hopeless) == (
            queued.batch,
            queued.seconds,
            queued.expired,
            queued.hopeless,
        )
    assert 100 < taken_directly < 400


def test_compute_time_of_what_is_taken_directly_is_charged_to_its_model() -> None:
    share = FairShare({})
    latency = measured({(1, 2): 0.2})
    queue = JobQueue(share)
    queue.take_directly([job(Variant(latency=latency, identity=("a", "1", "dense")))], now=0.0)
    assert share._virtual == {"a": 0.2}


def test_job_is_forgotten_when_it_is_discarded() -> None:
    executable = Variant()
    jobs = [job(executable) for _ in range(3)]
    queue = queue_of(jobs)
    assert queue.discard(jobs[0])
    assert not queue.discard(jobs[0])
    assert queue.rows_waiting(executable) == 2
    assert take(queue).batch == jobs[1:]
    assert not queue.discard(jobs[1])
    assert (len(queue), queue.rows_waiting(executable), queue.seconds_ahead("doubler")) == (0, 0, 0.0)


def test_rows_of_forgotten_jobs_do_not_count_as_present() -> None:
    variant = Variant(max_batch_size=64)
    jobs = [job(variant, rows=10) for _ in range(4)] + [job(variant) for _ in range(4)]
    queue = queue_of(jobs)
    for one in jobs[:4]:
        queue.discard(one)
    # Each of two executors takes its share.
    assert take(queue, executors=2).batch == jobs[4:6]


def test_nothing_is_left_of_many_jobs_that_came_and_went() -> None:
    """Sums of floats that are added and taken away in another order must not stay behind."""
    chance = random.Random(1)
    variants = [Variant(identity=(model, "1", "dense")) for model in "ab"]
    queue, waiting = queue_of([]), []
    for _ in range(3000):
        waiting.append(job(chance.choice(variants), rows=chance.randint(1, 40)))
        queue.append(waiting[-1])
        if chance.random() < 0.5:
            assert queue.discard(waiting.pop(chance.randrange(len(waiting))))
    assert queue.seconds_ahead("a") > 0
    for one in waiting:
        queue.discard(one)
    assert (len(queue), queue.seconds_ahead("a"), queue.seconds_ahead("b")) == (0, 0.0, 0.0)
    last = job(variants[0], rows=2)
    queue.append(last)
    assert queue.seconds_ahead("a") == last.cost_seconds


def test_everything_is_handed_over_in_order_of_arrival() -> None:
    jobs = [job(Variant(), target=-index) for index in range(3)]
    queue = queue_of(jobs)
    assert queue.take_all() == jobs
    assert len(queue) == 0


def test_expired_jobs_are_told_from_what_is_computed() -> None:
    variant = Variant()
    expired, good = job(variant, deadline=1.0), job(variant)
    taken = take(queue_of([good, expired]), now=1.5)
    assert (taken.batch, taken.expired, taken.hopeless) == ([good], [expired], [])
    alone = queue_of([job(variant, deadline=1.0)])
    assert take(alone, now=1.5).batch == []
    # A little sooner it is not yet too late for both.
    assert len(take(queue_of([job(variant, deadline=1.0), good]), now=0.9).batch) == 2


def test_jobs_that_would_be_late_are_computed_only_when_nothing_else_waits() -> None:
    variant = Variant(latency=measured({(1, 2): 1.0}))
    hopeless, good = job(variant, deadline=1.5), job(variant)
    queue = queue_of([good, hopeless])
    taken = take(queue, now=1.0)
    assert (taken.batch, taken.hopeless) == ([good], [hopeless])
    # So that the forecast is tried when it says that nothing at all will do.
    assert take(queue_of([hopeless]), now=1.0).batch == [hopeless]


def test_last_one_is_computed_when_the_forecast_says_that_all_would_be_late() -> None:
    variant = Variant(latency=measured({(1, 2): 1.0}))
    jobs = [job(variant, deadline=1.5 + index / 100) for index in range(3)]
    taken = take(queue_of(jobs), now=1.0)
    assert (taken.batch, taken.hopeless) == ([jobs[2]], jobs[:2])


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {"a": 3.0, "b": 1.0}])
def test_models_share_compute_time_by_weight_when_both_have_work(weights: dict[str, float]) -> None:
    # A batch of a takes twice as long as one of b, and all of a are more urgent.
    a = Variant(identity=("a", "1", "dense"), max_batch_size=1, latency=measured({(1, 2): 0.2}))
    b = Variant(identity=("b", "1", "dense"), max_batch_size=1, latency=measured({(1, 2): 0.1}))
    queue = queue_of(
        [job(one, target=target) for one, target in ((a, 0.5), (b, 1.0)) for _ in range(200)], weights=weights
    )
    had = {"a": 0.0, "b": 0.0}
    for _ in range(120):
        taken = take(queue)
        had[taken.batch[0].executable.identity[0]] += taken.seconds
    assert had["a"] / had["b"] == pytest.approx(weights["a"] / weights["b"], rel=0.1)


def test_urgent_job_of_another_model_goes_first_within_the_lead() -> None:
    a, b = (Variant(identity=(model, "1", "dense")) for model in "ab")
    patient, urgent = job(a), job(b, target=0.1)
    assert take(queue_of([patient, urgent])).batch == [urgent]


def delayed(**options: Any) -> Variant:
    latency = measured({(1, 2): 0.1, (4, 2): 0.1, (8, 2): 0.2})
    return Variant(max_queue_delay_seconds=5.0, latency=latency, **options)


def test_batch_is_ripe_when_its_oldest_job_has_waited_long_enough() -> None:
    variant = delayed()
    oldest, urgent = job(variant, at=1.0), job(variant, at=1.5, priority=1)
    assert urgent.due < oldest.due
    # Due before the oldest one or not, it does not put the departure off.
    for jobs in ([oldest], [oldest, job(variant, at=3.0)], [oldest, urgent]):
        queue = queue_of(jobs)
        now = 3.0
        for _ in range(3):
            taken = take(queue, now=now)
            if taken.batch:
                break
            assert taken.ripe_at > now
            now = taken.ripe_at
        assert now <= 6.0
        assert taken.batch
        assert set(taken.batch) == set(jobs)
    assert take(queue_of([oldest]), now=5.9).ripe_at == pytest.approx(6.0)


def test_batch_is_ripe_soon_enough_for_all_to_be_in_time() -> None:
    variant = delayed()
    jobs = [job(variant), job(variant, target=2.0)]
    ripe_at = take(queue_of(jobs)).ripe_at
    assert 1.5 < ripe_at < 2.0 - variant.latency.expected_seconds(2, 2)
    # With room for a waking that is a little late.
    taken = take(queue_of(jobs), now=ripe_at + 0.001)
    assert set(taken.batch) == set(jobs)


def test_batch_is_ripe_at_once_when_it_is_as_large_as_it_pays() -> None:
    variant = delayed(max_batch_size=64)
    queue = queue_of([job(variant, rows=1) for _ in range(3)])
    assert take(queue).batch == []
    queue.append(job(variant))
    assert len(take(queue, executors=4).batch) == 4


def test_batch_is_ripe_at_once_when_nobody_is_to_wait_for_more() -> None:
    assert len(take(queue_of([job(delayed())]), waits_for_more=False).batch) == 1


def test_others_are_taken_while_a_batch_fills() -> None:
    slow, quick = delayed(), Variant()
    waiting, other = job(slow, target=0.9), job(quick)
    assert take(queue_of([waiting, other])).batch == [other]


def test_seconds_ahead_of_a_model_are_bounded_by_its_share() -> None:
    a, b = (Variant(identity=(model, "1", "dense"), latency=measured({(1, 2): 1.0})) for model in "ab")
    queue = queue_of([job(a) for _ in range(50)] + [job(b)])
    assert queue.seconds_ahead("a") == pytest.approx(50 + 1)
    assert 1 + 1 <= queue.seconds_ahead("b") <= 1 + 1 + 0.2
    assert queue.seconds_ahead("c") <= 0.4
