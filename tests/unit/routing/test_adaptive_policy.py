import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveprune.routing.adaptive_policy import AdaptivePolicy, AdaptiveState, Decision, Verdict
from serveprune.routing.candidate import Candidate
from serveprune.scheduling.forecast import Forecast

POLICY = AdaptivePolicy(0.100)
ALONE = {"dense": 0.040, "int8": 0.020, "lean": 0.010}


def candidates(wait: float = 0.0, **alone: float) -> list[Candidate]:
    """Tiers of a server whose queue takes so long, with these times alone (or those of `ALONE`)."""
    times = alone or ALONE
    return [
        Candidate(tier, rank, 1.0, Forecast(wait, seconds, seconds))
        for rank, (tier, seconds) in enumerate(times.items())
    ]


def decide_in_turn(
    waits: list[tuple[float, float]], state: AdaptiveState | None = None
) -> tuple[AdaptiveState, list[Decision]]:
    """Decide for requests that come at these moments and meet these waits."""
    state = state or POLICY.start(now=waits[0][0])
    decisions = []
    for now, wait in waits:
        state, decision = POLICY.decide(state, candidates(wait), now=now)
        decisions.append(decision)
    return state, decisions


@pytest.mark.parametrize(
    ("wait", "elapsed", "tier", "verdict"),
    [
        # 1.75 times the wait and 1.35 times the compute have to fit into what is left of 100 ms.
        (0.0, 0.0, "dense", Verdict.BEST),
        (0.026, 0.0, "dense", Verdict.BEST),
        (0.027, 0.0, "int8", Verdict.LOAD),
        (0.041, 0.0, "int8", Verdict.LOAD),
        (0.042, 0.0, "lean", Verdict.LOAD),
        (0.049, 0.0, "lean", Verdict.LOAD),
        (0.050, 0.0, "lean", Verdict.REJECTED),
        (0.0, 0.045, "dense", Verdict.BEST),
        (0.0, 0.047, "int8", Verdict.LOAD),
        (0.020, 0.060, "lean", Verdict.REJECTED),
        (0.0, 0.090, "lean", Verdict.LATE),
        (0.0, 5.0, "lean", Verdict.LATE),
    ],
)
def test_request_gets_the_best_tier_that_is_in_time(wait: float, elapsed: float, tier: str, verdict: Verdict) -> None:
    _, decision = POLICY.decide(POLICY.start(now=0.0), candidates(wait), now=0.0, elapsed_seconds=elapsed)
    assert (decision.candidate.tier, decision.verdict) == (tier, verdict)


def test_rejected_request_is_told_when_the_queue_will_have_room() -> None:
    _, decision = POLICY.decide(POLICY.start(now=0.0), candidates(0.200), now=0.0)
    assert decision.verdict is Verdict.REJECTED
    # Lean takes 13.5 ms of the target with its margin; 86.5 ms with the margin of 1.75 are 49.4 ms of waiting.
    assert decision.retry_after_seconds == pytest.approx(0.200 - (0.100 - 0.0135) / 1.75)
    _, then = POLICY.decide(POLICY.start(now=0.0), candidates(0.200 - decision.retry_after_seconds - 1e-9), now=0.0)
    assert then.candidate.tier == "lean"
    assert then.verdict is Verdict.LOAD


@pytest.mark.parametrize("wait", [0.0, 10.0])
def test_fastest_tier_serves_when_the_target_is_impossible(wait: float) -> None:
    slow = candidates(wait, dense=0.4, int8=0.2, lean=0.3)
    _, decision = POLICY.decide(POLICY.start(now=0.0), slow, now=0.0)
    assert (decision.candidate.tier, decision.verdict) == ("int8", Verdict.IMPOSSIBLE)


def test_margin_is_given_up_when_the_target_leaves_no_room_for_it() -> None:
    tight = {"dense": 0.120, "int8": 0.095}
    start = POLICY.start(now=0.0)
    assert POLICY.decide(start, candidates(0.0, **tight), now=0.0)[1].candidate.tier == "int8"
    assert POLICY.decide(start, candidates(0.004, **tight), now=0.0)[1].verdict is Verdict.BEST
    assert POLICY.decide(start, candidates(0.006, **tight), now=0.0)[1].verdict is Verdict.REJECTED


def test_idle_server_gives_what_fits_when_its_best_tier_alone_is_too_slow() -> None:
    state, decision = POLICY.decide(
        POLICY.start(now=0.0), candidates(0.0, dense=0.150, int8=0.020, lean=0.010), now=0.0
    )
    assert (decision.candidate.tier, decision.verdict) == ("int8", Verdict.BEST)
    assert state.ceiling == 0


def test_one_large_request_does_not_lower_the_ceiling() -> None:
    state = POLICY.start(now=0.0)
    for step in range(10):
        state, decision = POLICY.decide(state, candidates(0.0, dense=0.30, int8=0.07, lean=0.03), now=step * 0.02)
        assert decision.candidate.tier == "int8"
    _, decision = POLICY.decide(state, candidates(), now=0.3)
    assert decision.candidate.tier == "dense"


def test_ceiling_stays_when_a_single_request_does_not_fit() -> None:
    state, decisions = decide_in_turn([(0.0, 0.0), (0.001, 0.035), (0.002, 0.0), (0.100, 0.0)])
    assert [each.candidate.tier for each in decisions] == ["dense", "int8", "dense", "dense"]
    assert (state.ceiling, state.steps_down) == (0, 0)


def test_ceiling_falls_when_requests_go_on_not_to_fit() -> None:
    state, _ = decide_in_turn([(0.0, 0.035), (0.005, 0.035), (0.011, 0.035)])
    assert (state.ceiling, state.steps_down) == (1, 1)


def test_ceiling_falls_to_the_tier_that_fits_when_that_is_not_the_next() -> None:
    state, _ = decide_in_turn([(0.0, 0.045), (0.011, 0.045)])
    assert state.ceiling == 2


def test_better_tier_is_taken_again_only_after_it_had_time_to_spare_for_a_while() -> None:
    fallen, _ = decide_in_turn([(0.0, 0.035), (0.011, 0.035)])
    moments = [0.02 + 0.01 * step for step in range(50)]
    state, decisions = decide_in_turn([(moment, 0.0) for moment in moments], fallen)
    tiers = [each.candidate.tier for each in decisions]
    taken = tiers.index("dense")
    # Three targets after the first forecast that left time to spare.
    assert moments[taken] == pytest.approx(0.32, abs=0.011)
    assert set(tiers[:taken]) == {"int8"}
    assert set(tiers[taken:]) == {"dense"}
    assert (state.ceiling, state.steps_up) == (0, 1)


def test_better_tier_is_not_taken_again_when_now_and_then_it_would_be_short_of_time() -> None:
    fallen, _ = decide_in_turn([(0.0, 0.035), (0.011, 0.035)])
    # 20 ms of waiting are 35 of the 46 ms that an idle server would leave.
    busy = [(0.02 + 0.01 * step, 0.020 if step % 20 == 0 else 0.0) for step in range(200)]
    state, decisions = decide_in_turn(busy, fallen)
    assert {each.candidate.tier for each in decisions} == {"int8"}
    assert state.ceiling == 1


def test_ceiling_rises_at_once_when_nobody_came_for_a_while() -> None:
    fallen, _ = decide_in_turn([(0.0, 0.035), (0.011, 0.035)])
    _, decisions = decide_in_turn([(5.0, 0.0)], fallen)
    assert decisions[0].candidate.tier == "dense"


def rises_under_an_overload(*, seconds: float, interval: float = 0.01) -> list[float]:
    """When dense is taken again by requests that it cannot keep up with, and int8 can."""
    state, now, dense_since = POLICY.start(now=0.0), 0.0, 0.0
    rises: list[float] = []
    while now < seconds:
        now += interval
        # With dense the queue grows by a millisecond in two; with anything else it is short.
        wait = (now - dense_since) / 2 if state.ceiling == 0 else 0.0
        before = state.ceiling
        state, _ = POLICY.decide(state, candidates(wait), now=now)
        if state.ceiling == 0 and before != 0:
            rises.append(now)
            dense_since = now
    return rises


def test_tier_is_held_off_longer_each_time_the_same_load_overwhelms_it() -> None:
    rises = rises_under_an_overload(seconds=60.0)
    pauses = [later - earlier for earlier, later in itertools.pairwise(rises)]
    assert pauses[:3] == pytest.approx([2.4, 4.4, 8.4], abs=0.3)


def test_tier_that_was_overwhelmed_is_taken_again_when_the_load_has_fallen() -> None:
    state, now = POLICY.start(now=0.0), 0.0
    while len(state.overloads) == 0:
        now += 0.01
        wait = 0.035 if state.ceiling == 0 and now > 5.0 else 0.0
        state, _ = POLICY.decide(state, candidates(wait), now=now)
    blocked_until, fell = state.overloads[0].until, now
    while state.ceiling != 0:
        now += 0.03  # a third of the load
        state, _ = POLICY.decide(state, candidates(0.0), now=now)
    assert now < blocked_until
    assert now - fell < 1.0


def test_smaller_tiers_serve_when_better_ones_are_not_ready() -> None:
    _, decision = POLICY.decide(POLICY.start(now=0.0), candidates()[1:], now=0.0)
    assert (decision.candidate.tier, decision.verdict) == ("int8", Verdict.BEST)


def test_tier_above_the_ceiling_serves_when_the_smaller_ones_are_slower() -> None:
    low = AdaptiveState(ceiling=2, since=0.0, last=0.0)
    slow_lean = {"dense": 0.040, "int8": 0.020, "lean": 0.090}
    state, decision = POLICY.decide(low, candidates(0.0, **slow_lean), now=0.0)
    assert (decision.candidate.tier, decision.verdict) == ("int8", Verdict.LOAD)
    assert state.ceiling == 2


def test_smallest_ready_tier_serves_when_the_ceiling_is_below_all_of_them() -> None:
    low = AdaptiveState(ceiling=2, since=0.0, last=0.0)
    _, decision = POLICY.decide(low, candidates()[:2], now=0.0)
    assert decision.candidate.tier == "int8"


seconds = st.integers(0, 300).map(lambda number: number / 1000)
forecasts = st.builds(Forecast, wait_seconds=seconds, compute_seconds=seconds, alone_seconds=seconds)
tiers = st.lists(forecasts, min_size=1, max_size=4).map(
    lambda made: [Candidate(f"tier-{rank}", rank, None, each) for rank, each in enumerate(made)]
)
requests = st.lists(st.tuples(seconds, seconds, tiers), min_size=1, max_size=25)


@given(requests)
def test_decisions_hold_what_they_promise_whatever_comes(sequence: list[tuple[float, float, list[Candidate]]]) -> None:
    state, now = POLICY.start(now=0.0), 0.0
    for pause, elapsed, offered in sequence:
        now += pause
        before = state
        state, decision = POLICY.decide(before, offered, now=now, elapsed_seconds=elapsed)
        chosen = decision.candidate.forecast
        fits = [
            each
            for each in offered
            if elapsed + 1.75 * each.forecast.wait_seconds + 1.35 * each.forecast.compute_seconds < 0.100 - 1e-9
        ]
        assert decision.candidate in offered
        match decision.verdict:
            case Verdict.BEST | Verdict.LOAD:
                assert elapsed + chosen.finish_seconds <= 0.100 + 1e-9
                better = [each for each in fits if each.rank < decision.candidate.rank]
                assert all(each.rank < state.ceiling for each in better)
            case Verdict.REJECTED:
                assert chosen.wait_seconds > 0
                assert decision.retry_after_seconds > 0
                assert all(each.rank < state.ceiling for each in fits)
            case Verdict.LATE:
                assert chosen.wait_seconds <= 0
                assert all(each.rank < state.ceiling for each in fits)
            case Verdict.IMPOSSIBLE:
                assert all(each.forecast.alone_seconds > 0.100 for each in offered)
        moved = (state.steps_up - before.steps_up) + (state.steps_down - before.steps_down)
        assert moved <= 2
        if state.steps_up > before.steps_up:
            # Nothing else happened in the hold before.
            assert now - before.since >= POLICY.hold_targets * POLICY.target_seconds - 1e-9


@given(requests)
def test_ceiling_rises_no_oftener_than_the_hold_allows(sequence: list[tuple[float, float, list[Candidate]]]) -> None:
    state, now = POLICY.start(now=0.0), 0.0
    for pause, elapsed, offered in sequence:
        now += pause
        state, _ = POLICY.decide(state, offered, now=now, elapsed_seconds=elapsed)
    assert state.steps_up <= now / (POLICY.hold_targets * POLICY.target_seconds)
