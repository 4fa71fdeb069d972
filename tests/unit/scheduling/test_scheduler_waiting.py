"""How long a job waits: for others where its deployment says so, and as forecast."""

from collections.abc import Callable

import pytest
from unit.scheduling.variants import PATIENCE_SECONDS, Asked, Clock, Held, Variant, measured, occupy, submit

from serveprune.scheduling.job import JobResult
from serveprune.scheduling.scheduler import Scheduler


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
