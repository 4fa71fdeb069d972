import gc
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from unit.scheduling.variants import PATIENCE_SECONDS, Asked, Clock, Held, Variant, measured

from serveprune.errors import Cancelled, DeadlineExceeded, Internal, InvalidArgument, Unavailable
from serveprune.oip.tensor import Array
from serveprune.scheduling.job import Executable, Job, JobResult
from serveprune.scheduling.latency_model import LatencyModel
from serveprune.scheduling.scheduler import Drop, Scheduler


@pytest.fixture
def clock() -> Clock:
    return Clock()


@dataclass
class Events:
    """What a scheduler told."""

    batches: list[int] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)

    def on_batch(self, executable: Executable, rows: int) -> None:
        self.batches.append(rows)

    def on_drop(self, executable: Executable, reason: Drop) -> None:
        self.drops.append(reason)


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def scheduler(clock: Clock, events: Events) -> Iterator[Scheduler]:
    scheduler = Scheduler(executors=1, clock=clock, on_batch=events.on_batch, on_drop=events.on_drop)
    yield scheduler
    clock.now = 1e9
    scheduler.stop(drain_seconds=0)


@pytest.fixture
def real_scheduler() -> Iterator[Callable[..., Scheduler]]:
    """Make schedulers on the real clock, and stop them."""
    made: list[Scheduler] = []

    def make(*, executors: int) -> Scheduler:
        made.append(Scheduler(executors=executors))
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.stop(drain_seconds=PATIENCE_SECONDS)


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


def test_scheduler_answers_each_job_with_its_own_rows_when_they_share_a_batch(
    scheduler: Scheduler, events: Events
) -> None:
    variant = Held()
    occupy(scheduler, variant)
    jobs = [Asked(variant, float(value), rows=1 + value % 3) for value in range(4)]
    submit(scheduler, *jobs)
    variant.let_go.set()
    for value, one in enumerate(jobs):
        doubled, _ = one.outputs()
        assert doubled.tolist() == [[2.0 * value] * 2] * one.job.rows
    assert variant.batch_rows == events.batches == [1, 7]


def test_scheduler_gives_each_job_the_outputs_it_asked_for_when_selections_differ(scheduler: Scheduler) -> None:
    variant = Held()
    occupy(scheduler, variant)
    both, only_z = Asked(variant, 1.0, outputs=("z", "y")), Asked(variant, 5.0, outputs=("z",))
    submit(scheduler, both, only_z)
    variant.let_go.set()
    assert [array[0, 0] for array in both.outputs()] == [2.0, 2.0]
    assert [array[0, 0] for array in only_z.outputs()] == [6.0]


def test_scheduler_forgets_a_job_at_once_when_its_caller_is_gone(scheduler: Scheduler) -> None:
    variant = Held()
    occupy(scheduler, variant)
    gone, stays = Asked(variant, 1.0), Asked(variant, 2.0)
    submit(scheduler, gone, stays)
    scheduler.abandon(gone.job)
    assert [type(end) for end in gone.ends] == [Cancelled]
    variant.let_go.set()
    stays.outputs()
    assert variant.batches == [[0.0], [2.0]]


def test_scheduler_answers_a_job_all_the_same_when_its_caller_leaves_during_compute(scheduler: Scheduler) -> None:
    variant = Held()
    running = occupy(scheduler, variant)
    scheduler.abandon(running.job)
    assert running.ends == []
    variant.let_go.set()
    running.outputs()
    scheduler.abandon(running.job)
    assert len(running.ends) == 1


@pytest.mark.parametrize("rows", [1, 19])
def test_scheduler_computes_nothing_when_the_caller_left_before_the_job_came(scheduler: Scheduler, rows: int) -> None:
    variant = Held()
    occupied, gone = occupy(scheduler, variant), Asked(variant, 1.0, rows=rows)
    before = scheduler.forecast(variant, rows=1, length=2)
    scheduler.abandon(gone.job)
    submit(scheduler, gone)
    assert isinstance(gone.error(), Cancelled)
    # Nor does it wait.
    assert scheduler.forecast(variant, rows=1, length=2) == before
    variant.let_go.set()
    occupied.outputs()
    assert variant.batches == [[0.0]]


def test_scheduler_drops_a_job_before_compute_when_its_deadline_has_passed(
    scheduler: Scheduler, clock: Clock, events: Events
) -> None:
    variant = Held()
    occupy(scheduler, variant)
    late = Asked(variant, 1.0, deadline=5.0)
    submit(scheduler, late)
    clock.now = 6.0
    variant.let_go.set()
    assert "1.000 s before compute" in late.error().message
    assert isinstance(late.error(), DeadlineExceeded)
    assert variant.batch_rows == [1]
    assert events.drops == [Drop.EXPIRED]


def test_scheduler_drops_a_job_before_compute_when_its_deadline_would_pass_during_it_and_others_wait(
    scheduler: Scheduler, clock: Clock, events: Events
) -> None:
    variant = Held(latency=measured({(1, 2): 1.0}))
    occupy(scheduler, variant)
    hopeless, good = Asked(variant, 1.0, deadline=1.5), Asked(variant, 2.0)
    submit(scheduler, hopeless, good)
    clock.now = 1.0
    variant.let_go.set()
    assert re.search(r"in 500 ms, .* about 1e\+03 ms", hopeless.error().message)
    good.outputs()
    assert variant.batches == [[0.0], [2.0]]
    assert events.drops == [Drop.HOPELESS]


def test_scheduler_computes_most_urgent_first_when_several_wait(scheduler: Scheduler) -> None:
    variant = Held(max_batch_size=1)
    occupy(scheduler, variant)
    wanted = [
        Asked(variant, 4.0),
        Asked(variant, 2.0, target=0.5),
        Asked(variant, 1.0, target=0.2),
        Asked(variant, 3.0, deadline=0.9),
        Asked(variant, 6.0, target=0.1, priority=3),
        Asked(variant, 0.5, priority=1),
        Asked(variant, 5.0),
    ]
    submit(scheduler, *wanted)
    variant.let_go.set()
    for one in wanted:
        one.outputs()
    assert [batch[0] for batch in variant.batches[1:]] == [0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_patient_job_is_overtaken_for_a_second_only(scheduler: Scheduler, clock: Clock) -> None:
    variant = Held(max_batch_size=1)
    occupy(scheduler, variant)
    patient = Asked(variant, -1.0)
    submit(scheduler, patient)
    urgent = []
    for step in range(20):
        clock.now = step / 10
        urgent.append(Asked(variant, float(step), target=clock.now + 0.05))
        submit(scheduler, urgent[-1])
    variant.let_go.set()
    for one in (patient, *urgent):
        one.outputs()
    order = [batch[0] for batch in variant.batches[1:]]
    # All who came before it was a second old, less what they allow, and nobody who came later.
    assert order == [*map(float, range(10)), -1.0, *map(float, range(10, 20))]


@pytest.mark.parametrize("error", [None, InvalidArgument("shape")])
def test_models_share_the_time_that_they_took_not_what_was_expected(
    scheduler: Scheduler, clock: Clock, error: Exception | None
) -> None:
    class Lasting(Held):
        def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
            clock.now += 0.3 if self.identity[0] == "slow" else 0.01
            order.append(self.identity[0])
            return super().run(feeds, outputs=outputs)

    order: list[str] = []
    holding = Held()
    occupied = occupy(scheduler, holding)
    slow = Lasting(max_batch_size=1, identity=("slow", "1", "dense"), error=error)
    quick = Lasting(max_batch_size=1, identity=("quick", "1", "dense"))
    # Those of the slow model are more urgent.
    waiting = [Asked(slow, target=0.5) for _ in range(3)] + [Asked(quick) for _ in range(40)]
    submit(scheduler, *waiting)
    for variant in (slow, quick, holding):
        variant.let_go.set()
    for one in (occupied, *waiting):
        one.end()
    assert order[0] == "slow"
    # The quick one has its turn, whatever the other one's answers were, until it had as much.
    assert 15 <= order.index("slow", 1) <= 31


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (InvalidArgument("shape"), InvalidArgument, "shape"),
        (ZeroDivisionError("secret detail"), Internal, "internal error; see the server's log"),
    ],
)
def test_scheduler_fails_the_job_and_goes_on_when_the_variant_raises(
    scheduler: Scheduler, raised: Exception, expected: type[Exception], message: str
) -> None:
    variant = Held(error=raised)
    variant.let_go.set()
    failed = Asked(variant, 1.0)
    submit(scheduler, failed)
    assert (type(failed.error()), failed.error().message) == (expected, message)
    variant.error = None
    after = Asked(variant, 3.0)
    submit(scheduler, after)
    assert after.outputs()[0][0, 0] == 6.0


class Choosy(Held):
    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        answers = super().run(feeds, outputs=outputs)
        if (feeds["x"] == 13).any():
            raise InvalidArgument("13 is out of range")
        return answers


def test_scheduler_answers_jobs_one_by_one_when_their_batch_fails_because_of_one(scheduler: Scheduler) -> None:
    variant = Choosy()
    occupy(scheduler, variant)
    good, bad, also_good = (Asked(variant, value) for value in (1.0, 13.0, 2.0))
    submit(scheduler, good, bad, also_good)
    variant.let_go.set()
    assert good.outputs()[0][0, 0] == 2.0
    assert also_good.outputs()[0][0, 0] == 4.0
    assert isinstance(bad.error(), InvalidArgument)
    assert variant.batch_rows == [1, 3, 1, 1, 1]


def test_scheduler_answers_jobs_one_by_one_when_the_graph_mixes_rows(scheduler: Scheduler) -> None:
    class Summing(Held):
        def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
            super().run(feeds, outputs=outputs)
            return [feeds["x"].sum(axis=0, keepdims=True) for _ in outputs]

    variant = Summing()
    occupy(scheduler, variant)
    jobs = [Asked(variant, 1.0), Asked(variant, 2.0)]
    submit(scheduler, *jobs)
    variant.let_go.set()
    assert [one.outputs()[0].tolist() for one in jobs] == [[[1.0, 1.0]], [[2.0, 2.0]]]


def test_rest_of_a_failed_batch_is_not_computed_for_callers_that_left(scheduler: Scheduler) -> None:
    class Leaving(Choosy):
        def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
            if len(feeds["x"]) == 2:
                scheduler.abandon(leaves.job)
            return super().run(feeds, outputs=outputs)

    variant = Leaving()
    occupy(scheduler, variant)
    bad, leaves = Asked(variant, 13.0), Asked(variant, 1.0)
    submit(scheduler, bad, leaves)
    variant.let_go.set()
    assert isinstance(leaves.error(), Cancelled)
    assert variant.batches == [[0.0], [13.0, 1.0], [13.0]]


def test_executor_goes_on_when_those_it_tells_raise(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    scheduler = Scheduler(executors=1, clock=clock, on_batch=fail, on_drop=fail)
    variant = Held()
    occupy(scheduler, variant)
    for deadline in (0.5, 1e6):
        scheduler.submit(Job(variant, {"x": np.zeros((1, 2), np.float32)}, 1, deadline, fail))
    last = Asked(variant, 2.0)
    submit(scheduler, last)
    clock.now = 0.6
    variant.let_go.set()
    assert last.outputs()[0][0, 0] == 4.0
    scheduler.stop(drain_seconds=PATIENCE_SECONDS)
    assert sum("ZeroDivisionError" in str(record.exc_text) for record in caplog.records) >= 4


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


def test_quick_job_is_left_to_an_executor_when_it_follows_another_closely(scheduler: Scheduler, clock: Clock) -> None:
    variant = Where()
    assert eventually(lambda: scheduler._idle == 1)
    first, second = Asked(variant), Asked(variant)
    submit(scheduler, first)
    clock.now += 0.0001
    submit(scheduler, second)
    second.outputs()
    assert variant.threads == [HERE, "executor-0"]


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


def test_large_job_is_computed_in_parts_and_answered_whole(scheduler: Scheduler) -> None:
    variant = Held()
    variant.let_go.set()
    values = np.arange(38, dtype=np.float32).reshape(19, 2)
    large = Asked(variant, values)
    submit(scheduler, large)
    doubled, plus_one = large.outputs()
    np.testing.assert_array_equal(doubled, values * 2)
    np.testing.assert_array_equal(plus_one, values + 1)
    assert variant.batch_rows == [8, 8, 3]


def test_large_job_is_computed_in_parts_that_keep_to_the_elements_a_batch_may_have(scheduler: Scheduler) -> None:
    variant = Held(max_batch_elements=6)
    variant.let_go.set()
    large = Asked(variant, np.arange(14, dtype=np.float32).reshape(7, 2))
    submit(scheduler, large)
    np.testing.assert_array_equal(large.outputs()[0], np.arange(14, dtype=np.float32).reshape(7, 2) * 2)
    assert variant.batch_rows == [3, 3, 1]


def test_large_job_is_computed_at_once_when_rows_are_not_apart(scheduler: Scheduler) -> None:
    variant = Held(batchable=False)
    variant.let_go.set()
    large = Asked(variant, 1.0, rows=19)
    submit(scheduler, large)
    large.outputs()
    assert variant.batch_rows == [19]


@dataclass(eq=False)
class Interrupted(Held):
    """A variant during whose first run something happens."""

    event: Callable[[], object] = lambda: None

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        if not self.batches:
            self.event()
        return super().run(feeds, outputs=outputs)


def interrupted(event: Callable[[], object]) -> Interrupted:
    variant = Interrupted(event=event)
    variant.let_go.set()
    return variant


def test_urgent_jobs_come_between_the_parts_of_a_large_one(scheduler: Scheduler) -> None:
    variant = interrupted(lambda: submit(scheduler, urgent))
    urgent, large = Asked(variant, 2.0, target=0.1), Asked(variant, 1.0, rows=19)
    submit(scheduler, large)
    assert len(large.outputs()[0]) == 19
    assert [2.0 in batch for batch in variant.batches] == [False, True, False]


def test_large_job_is_not_ahead_of_all_that_comes_after_it(scheduler: Scheduler, clock: Clock) -> None:
    """It takes 8 s; what comes after 3 goes before the parts that would not have been begun by then."""
    variant = Held(latency=measured({(1, 2): 0.25, (8, 2): 2.0}))
    occupied = occupy(scheduler, variant)
    large, small = Asked(variant, 1.0, rows=32), Asked(variant, 2.0)
    submit(scheduler, large)
    clock.now = 3.0
    submit(scheduler, small)
    variant.let_go.set()
    for one in (occupied, large, small):
        one.outputs()
    assert [batch[0] for batch in variant.batches[1:]] == [1.0, 1.0, 2.0, 1.0, 1.0]


def test_no_part_of_a_large_job_is_computed_when_the_whole_would_be_late(
    scheduler: Scheduler, clock: Clock, events: Events
) -> None:
    variant = Held(latency=measured({(1, 2): 0.25, (8, 2): 2.0}))
    occupied = occupy(scheduler, variant)
    large, possible = Asked(variant, 1.0, rows=32, deadline=7.9), Asked(variant, 2.0, rows=32, deadline=8.1)
    submit(scheduler, large)
    submit(scheduler, possible)
    variant.let_go.set()
    assert "takes about 8e+03 ms" in large.error().message
    for one in (occupied, possible):
        one.outputs()
    assert [batch[0] for batch in variant.batches] == [0.0, 2.0, 2.0, 2.0, 2.0]
    assert events.drops[0] is Drop.HOPELESS


def test_rest_of_a_large_job_is_not_computed_when_its_caller_leaves(scheduler: Scheduler) -> None:
    variant = interrupted(lambda: scheduler.abandon(large.job))
    large = Asked(variant, 1.0, rows=19)
    submit(scheduler, large)
    assert isinstance(large.error(), Cancelled)
    after = Asked(variant)
    submit(scheduler, after)
    after.outputs()
    assert variant.batch_rows == [8, 1]


def test_rest_of_a_large_job_is_not_computed_when_its_deadline_passes(scheduler: Scheduler, clock: Clock) -> None:
    variant = interrupted(lambda: setattr(clock, "now", 6.0))
    large = Asked(variant, 1.0, rows=19, deadline=5.0)
    submit(scheduler, large)
    assert isinstance(large.error(), DeadlineExceeded)
    assert variant.batch_rows == [8]


def test_rest_of_a_large_job_is_not_computed_when_a_part_fails(scheduler: Scheduler) -> None:
    variant = Held(error=InvalidArgument("shape"))
    occupied = occupy(scheduler, variant)
    large = Asked(variant, 1.0, rows=19)
    submit(scheduler, large)
    variant.let_go.set()
    assert isinstance(large.error(), InvalidArgument)
    occupied.error()
    after = Asked(variant, 2.0)
    submit(scheduler, after)
    after.error()
    assert variant.batch_rows == [1, 8, 1]


def test_rest_of_a_large_job_is_not_computed_when_the_drain_time_is_over() -> None:
    scheduler = Scheduler(executors=1)
    variant = Held()
    large = Asked(variant, 1.0, rows=19)
    submit(scheduler, large)
    assert variant.started.wait(PATIENCE_SECONDS)
    assert not scheduler.stop(drain_seconds=0)
    variant.let_go.set()
    assert isinstance(large.error(), Unavailable)
    assert eventually(lambda: scheduler.stop(drain_seconds=0))
    assert variant.batch_rows == [8]


def test_large_job_fails_when_its_parts_do_not_fit_together(scheduler: Scheduler) -> None:
    class Unequal(Held):
        def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
            super().run(feeds, outputs=outputs)
            return [np.zeros((len(feeds["x"]), len(feeds["x"]))) for _ in outputs]

    variant = Unequal()
    variant.let_go.set()
    large = Asked(variant, 1.0, rows=11)
    submit(scheduler, large)
    assert isinstance(large.error(), Internal)


def test_tensors_are_freed_when_the_caller_of_a_waiting_job_leaves(scheduler: Scheduler) -> None:
    variant = Held()
    occupy(scheduler, variant)
    first, gone, last = Asked(variant, 1.0), Asked(variant, 2.0, rows=7), Asked(variant, 3.0, rows=7)
    tensor = weakref.ref(gone.job.feeds["x"])
    submit(scheduler, first, gone, last)
    scheduler.abandon(gone.job)
    assert tensor() is None
    variant.let_go.set()
    last.outputs()
    # Nor are its rows counted: the other two share the batch they fill.
    assert variant.batch_rows == [1, 8]


@pytest.mark.parametrize("rows", [1, 19])
@pytest.mark.parametrize("error", [None, InvalidArgument("shape")])
def test_tensors_are_freed_when_a_job_has_run(scheduler: Scheduler, error: Exception | None, rows: int) -> None:
    variant = Held(error=error)
    variant.let_go.set()
    done = Asked(variant, 1.0, rows=rows)
    tensor = weakref.ref(done.job.feeds["x"])
    gc.collect()
    gc.disable()
    try:
        submit(scheduler, done)
        done.end()
        variant.error = None
        # The executor lets go of one job before it takes the next.
        after = Asked(variant, 1.0)
        submit(scheduler, after)
        after.outputs()
        assert tensor() is None
    finally:
        gc.enable()


def test_variant_is_freed_when_its_last_job_has_run(scheduler: Scheduler) -> None:
    variant = Held()
    variant.let_go.set()
    last = Asked(variant)
    freed = weakref.ref(variant)
    gc.collect()
    gc.disable()
    try:
        submit(scheduler, last)
        last.outputs()
        del variant, last
        # Although the executor has nothing else to do.
        assert eventually(lambda: freed() is None)
    finally:
        gc.enable()


def test_answers_are_freed_when_whoever_asked_lets_go_of_them(scheduler: Scheduler) -> None:
    class Kept(Held):
        def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
            answers = super().run(feeds, outputs=outputs)
            answered.extend(map(weakref.ref, answers))
            return answers

    answered: list[weakref.ref[Array]] = []
    variant = Kept()
    variant.let_go.set()
    gc.collect()
    gc.disable()
    try:
        large, after = Asked(variant, 1.0, rows=19), Asked(variant, 1.0)
        submit(scheduler, large)
        large.end()
        # Of a large job's parts nothing is left even before.
        submit(scheduler, after)
        after.end()
        assert [answer() for answer in answered[:6]] == [None] * 6
    finally:
        gc.enable()


def test_job_waits_for_others_when_its_deployment_asks_for_full_batches(scheduler: Scheduler, clock: Clock) -> None:
    variant = Held(max_queue_delay_seconds=10.0, max_batch_size=3, latency=measured({(1, 2): 0.01, (3, 2): 0.01}))
    variant.let_go.set()
    first, second, third = (Asked(variant, value) for value in (1.0, 2.0, 3.0))
    submit(scheduler, first, second)
    other = Asked(Variant())
    submit(scheduler, other)
    # Whoever does not ask for it does not wait, and finds the executor free.
    other.outputs()
    assert variant.batches == []
    submit(scheduler, third)
    for one in (first, second, third):
        one.outputs()
    assert variant.batches == [[1.0, 2.0, 3.0]]


def test_job_leaves_without_others_when_it_has_waited_as_long_as_it_may(
    real_scheduler: Callable[..., Scheduler],
) -> None:
    variant = Held(max_queue_delay_seconds=0.05)
    variant.let_go.set()
    lone = Asked(variant)
    submit(real_scheduler(executors=2), lone)
    end = lone.end()
    assert isinstance(end, JobResult)
    assert end.queue_seconds >= 0.05


def test_job_waits_for_no_others_when_the_scheduler_stops(clock: Clock) -> None:
    scheduler = Scheduler(executors=1, clock=clock)
    variant = Held(max_queue_delay_seconds=1e6)
    variant.let_go.set()
    lone = Asked(variant)
    submit(scheduler, lone)
    stopped = scheduler.stop(drain_seconds=PATIENCE_SECONDS)
    lone.outputs()
    assert stopped


def test_forecast_is_the_time_alone_when_nobody_is_there(scheduler: Scheduler) -> None:
    variant = Held(latency=measured({(1, 2): 0.1, (8, 2): 0.8}))
    forecast = scheduler.forecast(variant, rows=2, length=2)
    assert forecast.wait_seconds == 0
    assert forecast.alone_seconds == pytest.approx(0.2)
    assert forecast.compute_seconds == pytest.approx(0.2)
    assert forecast.finish_seconds == forecast.wait_seconds + forecast.compute_seconds


def test_forecast_counts_what_is_left_of_the_running_batch(scheduler: Scheduler, clock: Clock) -> None:
    variant = Held(latency=measured({(1, 2): 0.5}))
    occupied = occupy(scheduler, variant)
    waits = []
    for clock.now in (0.0, 0.2, 0.499, 3.0):
        waits.append(scheduler.forecast(variant, rows=1, length=2).wait_seconds)
    # One that overruns is taken to need a tenth of its time still.
    assert waits == pytest.approx([0.5, 0.3, 0.05, 0.05])
    variant.let_go.set()
    occupied.outputs()


def test_forecast_counts_what_waits_once_when_the_request_would_join_it(scheduler: Scheduler) -> None:
    """Rows pay up to four; eight wait: two batches, and then one with the request in it."""
    seconds = {(1, 2): 0.1, (2, 2): 0.12, (4, 2): 0.16, (8, 2): 0.32}
    variant = Held(latency=measured(seconds))
    occupied = occupy(scheduler, variant)
    assert scheduler.forecast(variant, rows=1, length=2).finish_seconds == pytest.approx(0.1 + 0.1)
    waiting = [Asked(variant) for _ in range(3)]
    submit(scheduler, *waiting)
    # The three and the request make one batch, after the one that runs.
    assert scheduler.forecast(variant, rows=1, length=2).finish_seconds == pytest.approx(0.1 + 0.16)
    more = [Asked(variant) for _ in range(4)]
    submit(scheduler, *more)
    assert scheduler.forecast(variant, rows=1, length=2).finish_seconds == pytest.approx(0.1 + 0.16 + 0.16)
    variant.let_go.set()
    for one in (occupied, *waiting, *more):
        one.outputs()


def test_forecast_of_a_large_request_is_that_of_its_parts(real_scheduler: Callable[..., Scheduler]) -> None:
    variant = Held(latency=measured({(1, 2): 0.1, (8, 2): 0.8}))
    forecast = real_scheduler(executors=2).forecast(variant, rows=32, length=2)
    # Four parts on two executors.
    assert forecast.compute_seconds == pytest.approx(2 * 0.8)
    assert forecast.alone_seconds == pytest.approx(1.6)
