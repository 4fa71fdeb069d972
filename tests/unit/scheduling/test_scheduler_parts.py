"""Jobs larger than a batch may be."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from unit.scheduling.variants import PATIENCE_SECONDS, Asked, Clock, Events, Held, eventually, measured, occupy, submit

from serveprune.errors import Cancelled, DeadlineExceeded, Internal, InvalidArgument, Unavailable
from serveprune.oip.tensor import Array
from serveprune.scheduling.scheduler import Drop, Scheduler


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
