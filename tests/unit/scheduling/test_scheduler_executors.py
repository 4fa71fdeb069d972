"""Which thread computes what: no core idles, quick jobs stay where they are, and all of them stop."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from unit.scheduling.variants import (
    PATIENCE_SECONDS,
    Asked,
    Clock,
    Events,
    Held,
    Variant,
    eventually,
    measured,
    occupy,
    submit,
)

from serveprune.errors import Cancelled, InvalidArgument, Unavailable
from serveprune.oip.tensor import Array
from serveprune.scheduling.latency_model import LatencyModel
from serveprune.scheduling.scheduler import Scheduler


def test_no_executor_idles_when_jobs_wait(real_scheduler: Callable[..., Scheduler]) -> None:
    """Whatever the forecasts say: these variants take much longer than they should."""
    for latency in (measured({}), measured({(1, 2): 0.0002}), measured({(1, 2): 10.0})):
        variants = [Held(latency=latency, identity=(name, "1", "dense")) for name in "abc"]
        scheduler = real_scheduler(executors=3)
        asked = []
        for variant in variants:
            asked.append(Asked(variant))
            submit(scheduler, asked[-1])
            # A moment, for an executor that is expected to be free at once is given one.
            time.sleep(0.005)
        assert all(variant.started.wait(PATIENCE_SECONDS) for variant in variants)
        for variant in variants:
            variant.let_go.set()
        for one in asked:
            one.outputs()


@dataclass(eq=False)
class Where(Variant):
    """Notes on which threads it runs."""

    fixed_work: bool = True
    latency: LatencyModel = field(default_factory=lambda: measured({(1, 2): 1e-5, (64, 2): 1e-5}))
    threads: list[str] = field(default_factory=list)

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        self.threads.append(threading.current_thread().name)
        return super().run(feeds, outputs=outputs)


HERE = threading.current_thread().name


def test_quick_job_is_computed_where_it_is_submitted_when_an_executor_is_free_and_nothing_else_is_there(
    scheduler: Scheduler, clock: Clock, events: Events
) -> None:
    variant = Where()
    assert eventually(lambda: scheduler._idle == 1)
    for value in (1.0, 2.0):
        asked = Asked(variant, value)
        scheduler.submit(asked.job)
        assert [len(asked.ends), asked.outputs()[0][0, 0]] == [1, 2 * value]
        clock.now += 1.0
    assert variant.threads == [HERE, HERE]
    assert events.batches == [1, 1]


def test_quick_jobs_share_a_run_where_they_are_submitted_when_more_were_to_come(
    scheduler: Scheduler, events: Events
) -> None:
    variant = Where()
    assert eventually(lambda: scheduler._idle == 1)
    asked = [Asked(variant, float(value)) for value in range(5)]
    for one in asked:
        scheduler.submit(one.job, more=True)
    assert not any(one.ends for one in asked)

    scheduler.proceed()

    assert [one.outputs()[0][0, 0] for one in asked] == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert variant.threads == [HERE]
    assert events.batches == [5]


def test_executor_begins_with_what_is_not_quick_while_more_come(scheduler: Scheduler) -> None:
    for variant in (Where(latency=measured({(1, 2): 1.0})), Where(fixed_work=False)):
        assert eventually(lambda: scheduler._idle == 1)
        asked = Asked(variant)
        scheduler.submit(asked.job, more=True)
        asked.outputs()
        assert variant.threads == ["executor-0"]


def test_executor_gets_what_is_not_quick_when_quick_ones_came_with_it(scheduler: Scheduler) -> None:
    quick, slow = Where(), Where(identity=("other", "1", "dense"), latency=measured({(1, 2): 1.0}))
    assert eventually(lambda: scheduler._idle == 1)
    asked = [Asked(variant) for variant in (quick, slow, quick)]
    for one in asked:
        scheduler.submit(one.job, more=True)

    scheduler.proceed()

    for one in asked:
        one.outputs()
    assert slow.threads == ["executor-0"]


def test_no_more_is_computed_where_jobs_are_submitted_than_takes_a_moment(scheduler: Scheduler, clock: Clock) -> None:
    @dataclass(eq=False)
    class Timed(Where):
        max_batch_size: int = 1

        def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
            if threading.current_thread().name == HERE:
                clock.now += 0.0004
            return super().run(feeds, outputs=outputs)

    variant = Timed()
    assert eventually(lambda: scheduler._idle == 1)
    asked = [Asked(variant) for _ in range(6)]
    for one in asked:
        scheduler.submit(one.job, more=True)

    scheduler.proceed()

    for one in asked:
        one.outputs()
    assert variant.threads == [HERE] * 3 + ["executor-0"] * 3


def test_job_whose_caller_left_before_its_round_proceeds_is_not_computed(scheduler: Scheduler) -> None:
    variant = Where()
    assert eventually(lambda: scheduler._idle == 1)
    left, stayed = Asked(variant), Asked(variant)
    for one in (left, stayed):
        scheduler.submit(one.job, more=True)
    scheduler.abandon(left.job)

    scheduler.proceed()

    assert isinstance(left.end(), Cancelled)
    assert len(stayed.outputs()[0]) == 1
    assert variant.threads == [HERE]


def test_what_other_threads_may_compute_is_announced_before_they_can(scheduler: Scheduler) -> None:
    happened: list[str] = []
    assert eventually(lambda: scheduler._idle == 1)
    scheduler.submit(Asked(Where()).job, more=True, before_queued=lambda: happened.append("quick"))
    scheduler.proceed()
    slow = Asked(Where(latency=measured({(1, 2): 1.0})))
    scheduler.submit(slow.job, more=True, before_queued=lambda: happened.append("slow"))
    slow.outputs()
    assert happened == ["slow"]


def test_jobs_that_proceed_after_the_scheduler_has_stopped_are_told_so(scheduler: Scheduler) -> None:
    asked = [Asked(Where()) for _ in range(2)]
    for one in asked:
        scheduler.submit(one.job, more=True)
    assert scheduler.stop(drain_seconds=PATIENCE_SECONDS)

    scheduler.proceed()

    assert all(isinstance(one.end(), Unavailable) for one in asked)


def test_quick_job_is_left_to_an_executor_when_all_are_busy_or_it_may_wait_for_others(
    scheduler: Scheduler, clock: Clock
) -> None:
    held = Held()
    occupied = occupy(scheduler, held)
    clock.now += 1.0
    variant = Where()
    asked = Asked(variant)
    submit(scheduler, asked)
    held.let_go.set()
    occupied.outputs()
    asked.outputs()
    assert eventually(lambda: scheduler._idle == 1)
    clock.now += 1.0
    patient = Where(max_queue_delay_seconds=1e-9)
    asked = Asked(patient)
    submit(scheduler, asked)
    clock.now += 1.0
    asked.outputs()
    assert eventually(lambda: scheduler._idle == 1)
    clock.now += 1.0
    # What was quick for one input may take for ever for another.
    looping = Where(fixed_work=False)
    asked = Asked(looping)
    submit(scheduler, asked)
    asked.outputs()
    assert variant.threads == patient.threads == looping.threads == ["executor-0"]


def test_quick_job_that_fails_is_told_so_where_it_is_submitted(scheduler: Scheduler) -> None:
    class Refusing(Where):
        def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
            raise InvalidArgument("never")

    assert eventually(lambda: scheduler._idle == 1)
    asked = Asked(Refusing())
    scheduler.submit(asked.job)
    assert [str(end) for end in asked.ends] == ["never"]
    assert scheduler.stop(drain_seconds=1)


def test_no_executor_idles_when_jobs_come_at_once_to_a_variant_of_which_nothing_is_known() -> None:
    clock = Clock()
    scheduler = Scheduler(executors=2, clock=clock)
    first, second = Held(latency=measured({})), Held(latency=measured({}))
    asked = [Asked(first), Asked(second)]
    occupied = occupy(scheduler, first)
    submit(scheduler, asked[1])
    assert second.started.wait(PATIENCE_SECONDS)
    first.let_go.set()
    second.let_go.set()
    occupied.outputs()
    assert scheduler.stop(drain_seconds=PATIENCE_SECONDS)


def test_all_executors_are_woken_when_a_job_of_many_parts_comes(real_scheduler: Callable[..., Scheduler]) -> None:
    together = threading.Barrier(3)

    class Meeting(Variant):
        def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
            together.wait(PATIENCE_SECONDS)
            return super().run(feeds, outputs=outputs)

    large = Asked(Meeting(), rows=24)
    submit(real_scheduler(executors=3), large)
    assert len(large.outputs()[0]) == 24


def test_executors_share_what_waits_when_they_are_free(real_scheduler: Callable[..., Scheduler]) -> None:
    scheduler = real_scheduler(executors=2)
    holding = [Held(), Held()]
    for variant in holding:
        occupy(scheduler, variant)
    variant = Held()
    waiting = [Asked(variant, float(value)) for value in range(6)]
    submit(scheduler, *waiting)
    for held in holding:
        held.let_go.set()
    # Neither takes all six: each computes a share of what was there.
    variant.let_go.set()
    for one in waiting:
        one.outputs()
    assert max(variant.batch_rows) <= 4
    assert sum(variant.batch_rows) == 6


def test_scheduler_finishes_what_it_has_and_refuses_more_when_it_stops() -> None:
    scheduler = Scheduler(executors=2)
    variant = Held()
    running = occupy(scheduler, variant)
    stopper = threading.Thread(target=scheduler.stop, kwargs={"drain_seconds": PATIENCE_SECONDS})
    stopper.start()
    variant.let_go.set()
    stopper.join(PATIENCE_SECONDS)
    assert running.outputs()[0].shape == (1, 2)
    with pytest.raises(Unavailable):
        scheduler.submit(Asked(variant).job)


def test_scheduler_fails_what_still_waits_when_the_drain_time_is_over() -> None:
    scheduler = Scheduler(executors=1)
    variant = Held()
    occupy(scheduler, variant)
    waiting = Asked(variant, 1.0)
    submit(scheduler, waiting)
    assert not scheduler.stop(drain_seconds=0.05)
    error = waiting.error()
    assert isinstance(error, Unavailable)
    assert (error.message, error.retry_after_seconds) == ("the server is shutting down", 1.0)
    variant.let_go.set()
    assert eventually(lambda: scheduler.stop(drain_seconds=0))


def test_idle_executors_sleep_on_when_a_batch_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    wakings = []
    wait = threading.Condition.wait

    def counted(condition: threading.Condition, timeout: float | None = None) -> bool:
        woken = wait(condition, timeout)
        if threading.current_thread().name.startswith("executor-"):
            wakings.append(threading.current_thread().name)
        return woken

    monkeypatch.setattr(threading.Condition, "wait", counted)
    scheduler = Scheduler(executors=8)
    variant = Held()
    variant.let_go.set()
    for _ in range(20):
        done = Asked(variant, 1.0)
        submit(scheduler, done)
        done.outputs()
    woken = len(wakings)
    scheduler.stop(drain_seconds=PATIENCE_SECONDS)
    # At most one executor wakes for a job; most find the next job without having slept.
    assert woken <= 20
