import itertools
import time
from collections.abc import Callable

import pytest

from serveprune.evaluation.latency import latency_clock, measure_latency


class Machine:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def clock(self) -> float:
        return self.now

    def work(self, name: str, *seconds: float) -> Callable[[], None]:
        """Return a call that takes these seconds in turn, over and over."""
        durations = itertools.cycle(seconds)

        def call() -> None:
            self.ran.append(name)
            self.now += next(durations)

        return call


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_record_holds_medians_and_the_spread_of_pairwise_ratios(machine: Machine) -> None:
    # The first 4 of 5 durations go to warm-up and calibration, so round 1 sees the last.
    dense = machine.work("dense", 0.1)
    tier = machine.work("tier", 0.05, 0.06, 0.07, 0.08, 0.04)

    record = measure_latency(dense, tier, batch_size=8, threads=2, rounds=20, clock=machine.clock)

    assert record.dense_ms == pytest.approx(100)
    assert record.tier_ms == pytest.approx(60)
    assert record.ratio == pytest.approx(0.6)
    # 4 each of .4 .5 .6 .7 .8: positions 1.9 and 17.1 of 0 to 19.
    assert record.ratio_low == pytest.approx(0.4)
    assert record.ratio_high == pytest.approx(0.8)
    assert (record.batch_size, record.threads, record.rounds) == (8, 2, 20)
    assert record.speedup == pytest.approx(1 / 0.6)


def test_both_are_warm_and_take_turns_in_random_order(machine: Machine) -> None:
    dense, tier = machine.work("dense", 0.1), machine.work("tier", 0.1)

    measure_latency(dense, tier, batch_size=1, threads=1, rounds=40, clock=machine.clock)

    warm_up, rounds = machine.ran[:8], machine.ran[8:]
    assert (warm_up.count("dense"), warm_up.count("tier")) == (4, 4)
    pairs = list(zip(rounds[::2], rounds[1::2], strict=True))
    assert {frozenset(pair) for pair in pairs} == {frozenset(("dense", "tier"))}
    assert 5 < sum(pair[0] == "dense" for pair in pairs) < 35


def test_order_is_the_same_when_the_seed_is(machine: Machine) -> None:
    dense, tier = machine.work("dense", 0.1), machine.work("tier", 0.1)
    for seed in (1, 1, 2):
        measure_latency(dense, tier, batch_size=1, threads=1, clock=machine.clock, seed=seed)

    first, second, other = machine.ran[:128], machine.ran[128:256], machine.ran[256:]
    assert first == second != other


@pytest.mark.parametrize(("seconds", "rounds"), [(0.01, 60), (0.5, 20), (5.0, 10)])
def test_rounds_end_with_the_budget_but_not_before_the_least(seconds: float, rounds: int, machine: Machine) -> None:
    work = machine.work("both", seconds)

    record = measure_latency(work, work, batch_size=1, threads=1, budget_seconds=20, clock=machine.clock)

    assert record.rounds == rounds


def test_quick_calls_are_repeated_within_a_timing(machine: Machine) -> None:
    dense, tier = machine.work("dense", 2**-10), machine.work("tier", 2**-14)

    record = measure_latency(dense, tier, batch_size=1, threads=1, rounds=10, clock=machine.clock)

    # The least number of calls that takes 2 ms: 0.98 ms and 0.061 ms each.
    assert machine.ran.count("dense") == 4 + 10 * 3
    assert machine.ran.count("tier") == 4 + 10 * 33
    assert record.dense_ms == pytest.approx(1000 / 1024)
    assert record.ratio == pytest.approx(1 / 16)


def test_ratio_is_finite_when_calls_take_no_time(machine: Machine) -> None:
    work = machine.work("both", 0.0)

    assert measure_latency(work, work, batch_size=1, threads=1, clock=machine.clock).ratio == 1.0


def test_clock_counts_the_work_of_this_process_when_one_thread_computes() -> None:
    assert latency_clock(1) is time.process_time
    # Threads that wait for each other use less processor time than they take.
    assert latency_clock(2) is time.perf_counter
