import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.scheduling.variants import Clock

from serveprune.scheduling.latency_model import LatencyModel
from serveprune.scheduling.latency_table import LatencyTable

TABLE = LatencyTable({(1, 8): 0.1, (8, 8): 0.2, (32, 8): 0.8})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def model(clock: Clock) -> LatencyModel:
    return LatencyModel(TABLE, clock=clock)


def test_measurements_hold_until_something_is_observed(model: LatencyModel) -> None:
    assert (model.correction, model.expected_seconds(8, 8)) == (1.0, 0.2)
    assert model.safe_seconds(8, 8) > 0.2
    assert model.table is TABLE


@pytest.mark.parametrize("factor", [0.25, 0.9, 3.0])
def test_expectation_becomes_what_is_observed(model: LatencyModel, factor: float) -> None:
    for count in range(100):
        rows = (1, 8, 32)[count % 3]
        model.observe(rows, 8, TABLE.seconds(rows, 8) * factor)
    assert model.correction == pytest.approx(factor, rel=0.001)
    assert model.expected_seconds(8, 8) == pytest.approx(0.2 * factor, rel=0.001)
    # What is observed does not vary, so that there is nothing to be safe from.
    assert model.safe_seconds(8, 8) == pytest.approx(0.2 * factor, rel=0.01)


def test_one_odd_batch_changes_little_and_twenty_much(model: LatencyModel) -> None:
    model.observe(8, 8, 0.8)
    assert 1.1 < model.correction < 1.2
    for _ in range(19):
        model.observe(8, 8, 0.8)
    assert 3.2 < model.correction < 4.0


def test_margin_grows_with_what_batches_vary(model: LatencyModel) -> None:
    def margin() -> float:
        return model.safe_seconds(8, 8) / model.expected_seconds(8, 8)

    before = margin()
    for count in range(100):
        model.observe(8, 8, (0.1, 0.4)[count % 2])
    assert margin() > 2 * before


def test_half_of_what_was_learned_is_forgotten_in_ten_seconds_without_observation(
    model: LatencyModel, clock: Clock
) -> None:
    for count in range(300):
        model.observe(8, 8, (0.8, 1.6)[count % 2])
    learned, margin = model.correction, model.safe_seconds(8, 8) / model.expected_seconds(8, 8)
    clock.now += 10
    assert model.correction == pytest.approx(learned**0.5)
    clock.now += 1000
    assert model.correction == pytest.approx(1.0)
    # A margin that keeps everybody away would be kept for ever otherwise.
    assert 1.0 < model.safe_seconds(8, 8) / 0.2 < margin
    assert model.safe_seconds(8, 8) / 0.2 == pytest.approx(LatencyModel(TABLE).safe_seconds(8, 8) / 0.2)


def test_what_is_left_after_forgetting_is_what_new_observations_start_from(model: LatencyModel, clock: Clock) -> None:
    for _ in range(300):
        model.observe(8, 8, 0.8)
    clock.now += 1000
    model.observe(8, 8, 0.2)
    assert model.correction == pytest.approx(1.0)


def test_time_that_goes_backwards_does_no_harm(model: LatencyModel, clock: Clock) -> None:
    clock.now = 100
    model.observe(8, 8, 0.4)
    learned = model.correction
    clock.now = 0
    assert model.correction == learned


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_correction_is_bounded_whatever_is_observed(seconds: list[float]) -> None:
    model = LatencyModel(TABLE, clock=Clock())
    for each in seconds:
        model.observe(1, 8, each)
    assert 1 / 8 - 1e-9 <= model.correction <= 8 + 1e-9
    assert model.expected_seconds(8, 8) <= model.safe_seconds(8, 8) < float("inf")


def test_first_answer_is_the_measurement_where_there_was_none(clock: Clock) -> None:
    model = LatencyModel(LatencyTable({}), clock=clock)
    assert model.expected_seconds(4, 10) == 0.0
    model.observe(4, 10, 0.4)
    assert model.expected_seconds(4, 10) == pytest.approx(0.4)
    assert model.correction == 1.0
    for _ in range(100):
        model.observe(4, 10, 0.8)
    assert model.expected_seconds(4, 10) == pytest.approx(0.8, rel=0.001)


@pytest.mark.parametrize("length", [0, 1])
def test_first_answer_may_be_that_of_rows_without_elements(clock: Clock, length: int) -> None:
    model = LatencyModel(LatencyTable({}), clock=clock)
    model.observe(2, length, 0.4)
    assert model.expected_seconds(2, 1) == pytest.approx(0.4)
    assert model.costs(2, 10)[0] == pytest.approx(4.0)


def test_costs_are_those_alone_and_those_within_a_batch_that_pays(model: LatencyModel) -> None:
    assert model.worthwhile_rows(8) == 8
    assert model.costs(2, 8) == pytest.approx((model.expected_seconds(2, 8), 0.2 / 8 * 2))
    for _ in range(200):
        model.observe(8, 8, 0.6)
    assert model.costs(2, 8)[1] == pytest.approx(0.6 / 8 * 2, rel=0.001)


def test_observations_of_several_threads_are_all_counted(model: LatencyModel) -> None:
    def observe() -> None:
        for _ in range(200):
            model.observe(8, 8, 0.4)

    threads = [threading.Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.correction == pytest.approx(2.0, rel=1e-6)
