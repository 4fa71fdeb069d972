"""Who is computed, in which order, and what becomes of those who left, are late, or fail."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from unit.scheduling.variants import PATIENCE_SECONDS, Asked, Clock, Events, Held, measured, occupy, submit

from serveprune.errors import Cancelled, DeadlineExceeded, Internal, InvalidArgument
from serveprune.oip.tensor import Array
from serveprune.scheduling.job import Job
from serveprune.scheduling.scheduler import Drop, Scheduler


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
