"""Nothing is kept alive longer than somebody needs it."""

import gc
import weakref
from collections.abc import Mapping, Sequence

import pytest
from unit.scheduling.variants import (
    Asked,
    Held,
    eventually,
    occupy,
    submit,
)

from serveprune.errors import InvalidArgument
from serveprune.oip.tensor import Array
from serveprune.scheduling.scheduler import Scheduler


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
