import threading

from serveprune.rollouts.latency_counts import latency_bounds
from serveprune.rollouts.side import Side

BOUNDS = latency_bounds(0.04)


def test_counts_are_those_since_the_last_look() -> None:
    side = Side(BOUNDS)
    for seconds in (0.01, 0.04, 0.05):
        side.answered(seconds)
    side.failed()
    side.compared(0.5)
    taken = side.take()
    assert (taken.requests, taken.errors) == (4, 1)
    assert taken.latencies.slower_than(0.04) == 1
    assert (taken.agreements.count, taken.agreements.total, taken.agreements.squares) == (1, 0.5, 0.25)
    assert side.take().requests == 0


def test_no_request_is_lost_when_many_end_while_counts_are_taken() -> None:
    side = Side(BOUNDS)
    threads = [threading.Thread(target=lambda: [side.answered(0.01) for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    counted = 0
    while any(thread.is_alive() for thread in threads):
        counted += side.take().requests
    assert counted + side.take().requests == 8000
