import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveprune.supervision.restart_policy import NextStart, RestartPolicy

POLICY = RestartPolicy(early_seconds=10.0, first_delay_seconds=0.5, longest_delay_seconds=1.5, early_deaths=6)


@pytest.mark.parametrize(
    ("before", "delay_seconds"), [(0, 0.0), (1, 0.5), (2, 1.0), (3, 1.5), (4, 1.5), (5, None), (9, None)]
)
def test_next_start_comes_later_with_each_early_death_and_at_last_not_at_all(
    before: int, delay_seconds: float | None
) -> None:
    assert POLICY.after_death(lived_seconds=9.9, early_deaths=before) == NextStart(delay_seconds, before + 1)


@pytest.mark.parametrize("before", [0, 1, 5, 100])
def test_next_start_comes_at_once_when_the_process_had_lived_for_a_while(before: int) -> None:
    assert POLICY.after_death(lived_seconds=10.0, early_deaths=before) == NextStart(0.0, early_deaths=0)


@given(st.lists(st.floats(0, 9.9), min_size=6, max_size=20))
def test_processes_that_all_die_early_are_started_six_times(lives: list[float]) -> None:
    policy, early_deaths, starts = RestartPolicy(), 0, 1
    for lived in lives:
        following = policy.after_death(lived_seconds=lived, early_deaths=early_deaths)
        early_deaths = following.early_deaths
        if following.delay_seconds is None:
            break
        starts += 1
    assert starts == 6
