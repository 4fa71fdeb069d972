from collections.abc import Callable, Iterator

import pytest
from unit.scheduling.variants import PATIENCE_SECONDS, Clock, Events

from serveprune.scheduling.scheduler import Scheduler


@pytest.fixture
def clock() -> Clock:
    return Clock()


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
