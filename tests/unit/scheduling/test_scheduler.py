import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pytest

from serveprune.errors import Cancelled, DeadlineExceeded, Internal, InvalidArgument, Unavailable
from serveprune.oip.tensor import Array
from serveprune.scheduling.job import Job
from serveprune.scheduling.scheduler import Scheduler


class Held:
    """A variant that doubles its input, but only once it is let go."""

    batchable = True
    max_batch_size = 8
    identity = ("held", "1", "dense")
    output_names = ("y", "z")

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.started = threading.Event()
        self.batches: list[int] = []
        self.error: Exception | None = None

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        self.started.set()
        assert self.let_go.wait(30)
        self.batches.append(len(feeds["x"]))
        if self.error:
            raise self.error
        by_name = {"y": feeds["x"] * 2, "z": feeds["x"] + 1}
        return [by_name[name] for name in outputs]


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def scheduler(clock: list[float]) -> Iterator[Scheduler]:
    scheduler = Scheduler(executors=1, clock=lambda: clock[0])
    yield scheduler
    clock[0] = 1e9
    scheduler.stop(drain_seconds=0)


def job(variant: Held, value: float, *, rows: int = 1, outputs: tuple[str, ...] = (), deadline: float = 1e6) -> Job:
    return Job(variant, {"x": np.full((rows, 2), value, np.float32)}, rows, deadline, outputs)


def occupy(scheduler: Scheduler, variant: Held) -> Job:
    """Keep the only executor busy, so that what follows has to queue."""
    first = job(variant, 0.0)
    scheduler.submit(first)
    assert variant.started.wait(30)
    return first


def test_scheduler_answers_each_job_with_its_own_rows_when_they_share_a_batch(scheduler: Scheduler) -> None:
    variant = Held()
    occupy(scheduler, variant)
    jobs = [job(variant, float(value), rows=1 + value % 3) for value in range(4)]
    for one in jobs:
        scheduler.submit(one)
    variant.let_go.set()
    for value, one in enumerate(jobs):
        doubled, _ = one.future.result(30).outputs
        assert doubled.tolist() == [[2.0 * value] * 2] * one.rows
    assert variant.batches == [1, 7]


def test_scheduler_gives_each_job_the_outputs_it_asked_for_when_selections_differ(scheduler: Scheduler) -> None:
    variant = Held()
    occupy(scheduler, variant)
    both, only_z = job(variant, 1.0, outputs=("z", "y")), job(variant, 5.0, outputs=("z",))
    scheduler.submit(both)
    scheduler.submit(only_z)
    variant.let_go.set()
    assert [array[0, 0] for array in both.future.result(30).outputs] == [2.0, 2.0]
    assert [array[0, 0] for array in only_z.future.result(30).outputs] == [6.0]


def test_scheduler_drops_jobs_before_compute_when_their_caller_is_gone(scheduler: Scheduler) -> None:
    variant = Held()
    occupy(scheduler, variant)
    gone, stays = job(variant, 1.0), job(variant, 2.0)
    scheduler.submit(gone)
    scheduler.submit(stays)
    assert gone.future.cancel()
    variant.let_go.set()
    stays.future.result(30)
    assert variant.batches == [1, 1]


def test_scheduler_drops_jobs_before_compute_when_their_deadline_has_passed(
    scheduler: Scheduler, clock: list[float]
) -> None:
    variant = Held()
    occupy(scheduler, variant)
    late = job(variant, 1.0, deadline=5.0)
    scheduler.submit(late)
    clock[0] = 6.0
    variant.let_go.set()
    with pytest.raises(DeadlineExceeded, match=r"1\.000 s before compute"):
        late.future.result(30)
    assert variant.batches == [1]


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
    variant = Held()
    variant.error = raised
    variant.let_go.set()
    failed = job(variant, 1.0)
    scheduler.submit(failed)
    with pytest.raises(expected, match=message):
        failed.future.result(30)
    variant.error = None
    after = job(variant, 3.0)
    scheduler.submit(after)
    assert after.future.result(30).outputs[0][0, 0] == 6.0


def test_scheduler_answers_jobs_one_by_one_when_their_batch_fails_because_of_one(scheduler: Scheduler) -> None:
    class Choosy(Held):
        def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
            answers = super().run(feeds, outputs=outputs)
            if (feeds["x"] == 13).any():
                raise InvalidArgument("13 is out of range")
            return answers

    variant = Choosy()
    occupy(scheduler, variant)
    good, bad, also_good = (job(variant, value) for value in (1.0, 13.0, 2.0))
    for one in (good, bad, also_good):
        scheduler.submit(one)
    variant.let_go.set()
    assert good.future.result(30).outputs[0][0, 0] == 2.0
    assert also_good.future.result(30).outputs[0][0, 0] == 4.0
    with pytest.raises(InvalidArgument, match="13 is out of range"):
        bad.future.result(30)
    assert variant.batches == [1, 3, 1, 1, 1]


def test_scheduler_answers_jobs_one_by_one_when_the_graph_mixes_rows(scheduler: Scheduler) -> None:
    class Summing(Held):
        def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
            super().run(feeds, outputs=outputs)
            return [feeds["x"].sum(axis=0, keepdims=True) for _ in outputs]

    variant = Summing()
    occupy(scheduler, variant)
    jobs = [job(variant, 1.0), job(variant, 2.0)]
    for one in jobs:
        scheduler.submit(one)
    variant.let_go.set()
    assert [one.future.result(30).outputs[0].tolist() for one in jobs] == [[[1.0, 1.0]], [[2.0, 2.0]]]


def test_scheduler_finishes_what_it_has_and_refuses_more_when_it_stops() -> None:
    scheduler = Scheduler(executors=2)
    variant = Held()
    running = occupy(scheduler, variant)
    stopper = threading.Thread(target=scheduler.stop, kwargs={"drain_seconds": 30})
    stopper.start()
    variant.let_go.set()
    stopper.join(30)
    assert running.future.result(0).outputs[0].shape == (1, 2)
    with pytest.raises(Unavailable):
        scheduler.submit(job(variant, 1.0))


def test_scheduler_fails_what_still_waits_when_the_drain_time_is_over() -> None:
    scheduler = Scheduler(executors=1)
    variant = Held()
    occupy(scheduler, variant)
    waiting = job(variant, 1.0)
    scheduler.submit(waiting)
    scheduler.stop(drain_seconds=0.05)
    with pytest.raises(Unavailable, match="shutting down") as refused:
        waiting.future.result(0)
    assert refused.value.retry_after_seconds == 1.0
    variant.let_go.set()


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
        scheduler.submit(done := job(variant, 1.0))
        done.future.result(30)
    woken = len(wakings)
    scheduler.stop(drain_seconds=30)
    # At most one executor wakes for a job; most find the next job without having slept.
    assert woken <= 20


def test_large_job_is_computed_in_slices_and_answered_whole(scheduler: Scheduler) -> None:
    variant = Held()
    variant.let_go.set()
    values = np.arange(38, dtype=np.float32).reshape(19, 2)
    large = Job(variant, {"x": values}, 19, 1e6)
    scheduler.submit(large)
    doubled, plus_one = large.future.result(30).outputs
    np.testing.assert_array_equal(doubled, values * 2)
    np.testing.assert_array_equal(plus_one, values + 1)
    assert variant.batches == [8, 8, 3]


def test_large_job_is_computed_at_once_when_rows_are_not_apart(scheduler: Scheduler) -> None:
    variant = Held()
    variant.batchable = False
    variant.let_go.set()
    large = job(variant, 1.0, rows=19)
    scheduler.submit(large)
    large.future.result(30)
    assert variant.batches == [19]


class Interrupted(Held):
    """A variant during whose first run something happens."""

    def __init__(self, event: Callable[[], object]) -> None:
        super().__init__()
        self.let_go.set()
        self.event = event

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        if not self.batches:
            self.event()
        return super().run(feeds, outputs=outputs)


def test_rest_of_a_large_job_is_not_computed_when_its_caller_leaves(scheduler: Scheduler) -> None:
    variant = Interrupted(lambda: large.abandon())
    large = job(variant, 1.0, rows=19)
    scheduler.submit(large)
    with pytest.raises(Cancelled, match="before all of the request"):
        large.future.result(30)
    assert variant.batches == [8]


def test_rest_of_a_large_job_is_not_computed_when_its_deadline_passes(scheduler: Scheduler, clock: list[float]) -> None:
    variant = Interrupted(lambda: clock.__setitem__(0, 6.0))
    large = job(variant, 1.0, rows=19, deadline=5.0)
    scheduler.submit(large)
    with pytest.raises(DeadlineExceeded, match="before all of the request"):
        large.future.result(30)
    assert variant.batches == [8]


def test_rest_of_a_large_job_is_not_computed_when_the_drain_time_is_over() -> None:
    scheduler = Scheduler(executors=1)
    variant = Held()
    large = job(variant, 1.0, rows=19)
    scheduler.submit(large)
    assert variant.started.wait(30)
    assert not scheduler.stop(drain_seconds=0)
    variant.let_go.set()
    with pytest.raises(Unavailable, match="shutting down"):
        large.future.result(30)
    assert variant.batches == [8]


def test_tensors_are_freed_when_the_caller_of_a_waiting_job_leaves(scheduler: Scheduler) -> None:
    variant = Held()
    occupy(scheduler, variant)
    first, gone, last = job(variant, 1.0), job(variant, 2.0, rows=7), job(variant, 3.0, rows=7)
    tensor = weakref.ref(gone.feeds["x"])
    for one in (first, gone, last):
        scheduler.submit(one)
    gone.abandon()
    assert tensor() is None
    variant.let_go.set()
    last.future.result(30)
    # Nor are its rows counted: the other two share the batch they fill.
    assert variant.batches == [1, 8]


@pytest.mark.parametrize("error", [None, InvalidArgument("shape")])
def test_tensors_are_freed_when_a_job_has_run(scheduler: Scheduler, error: Exception | None) -> None:
    variant = Held()
    variant.error = error
    variant.let_go.set()
    done = job(variant, 1.0)
    tensor = weakref.ref(done.feeds["x"])
    gc.disable()
    try:
        scheduler.submit(done)
        done.future.exception(30)
        variant.error = None
        # The executor lets go of one job before it takes the next.
        scheduler.submit(after := job(variant, 1.0))
        after.future.result(30)
        assert tensor() is None
    finally:
        gc.enable()
