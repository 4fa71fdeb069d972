from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serveprune.config.canary import CanaryConfig
from serveprune.errors import DataLoss, FailedPrecondition, InvalidArgument, ServePruneError
from serveprune.rollouts.judgement import Finding, Judgement, Verdict
from serveprune.rollouts.rollout import Change, ChangeKind, Phase, Rollout
from serveprune.rollouts.rollout_document import read_rollout, rollout_document
from serveprune.rollouts.rollout_policy import Outcome, RolloutPolicy

IDENTITY, OTHER = "a" * 64, "b" * 64
STEPS: list[dict[str, Any]] = [{"setWeight": 5}, {"pause": 60}, {"setWeight": 25}, {"pause": {}}, {"setWeight": 100}]
GUARDS = {"max_p99_ms": 40}


def policy(steps: Sequence[dict[str, Any]] = STEPS, *, guards: dict[str, Any] | None = GUARDS) -> RolloutPolicy:
    return RolloutPolicy(CanaryConfig.model_validate({"tier": "lean", "steps": steps, "guards": guards}))


def judged(verdict: Verdict) -> Judgement:
    return Judgement((Finding("max_p99_ms", verdict, f"figures of {verdict}"),))


OK, LACKING, BREACH = map(judged, (Verdict.OK, Verdict.NOT_ENOUGH_SAMPLES, Verdict.BREACH))


class Played:
    """A rollout, event by event, with what happened."""

    def __init__(self, rules: RolloutPolicy) -> None:
        self.policy = rules
        self.rollout = rules.start(IDENTITY)
        self.changes: list[Change] = []

    def tick(self, now: float, judgement: Judgement | None = OK, *, is_ready: bool = True) -> "Played":
        return self.then(self.policy.tick(self.rollout, now=now, is_ready=is_ready, judgement=judgement))

    def then(self, outcome: Outcome) -> "Played":
        self.rollout, changes = outcome
        self.changes += changes
        return self

    @property
    def percent(self) -> int:
        return self.policy.weights(self.rollout).canary_percent

    @property
    def stands(self) -> tuple[Phase, int]:
        return self.rollout.phase, self.percent

    @property
    def last(self) -> str:
        return self.changes[-1].text


def test_rollout_goes_step_by_step_to_its_promotion() -> None:
    played = Played(policy())
    assert played.stands == (Phase.WAITING, 0)
    stood = []
    for now in (0, 30, 59, 60, 90):
        stood.append(played.tick(now).stands)
    assert stood == [(Phase.PROGRESSING, 5)] * 3 + [(Phase.PAUSED, 25)] * 2
    assert played.rollout.reason == "step 4 of 5: waits for an operator"
    played.then(played.policy.resume(played.rollout, now=95, who="ann"))
    assert played.stands == (Phase.PROGRESSING, 25)
    assert played.tick(96).stands == (Phase.PROMOTED, 100)
    assert played.changes == [
        Change(ChangeKind.CANARY_READY, 0, "the canary is ready", 0),
        Change(ChangeKind.STEP, 0, "step 1 of 5: weight set to 5 %", 5),
        Change(ChangeKind.STEP, 0, "step 2 of 5: pauses for 1m", 5),
        Change(ChangeKind.STEP, 60, "step 3 of 5: weight set to 25 %", 25),
        Change(ChangeKind.STEP, 60, "step 4 of 5: waits for an operator", 25),
        Change(ChangeKind.RESUMED, 95, "resumed by ann", 25, "ann"),
        Change(ChangeKind.PROMOTED, 96, "promoted after the last step; figures of ok", 100),
    ]


def test_canary_is_promoted_after_its_last_step_when_that_does_not_say_so() -> None:
    played = Played(policy([{"setWeight": 50}, {"pause": 60}])).tick(0).tick(59)
    assert played.stands == (Phase.PROGRESSING, 50)
    assert played.tick(60).stands == (Phase.PROMOTED, 100)


# A canary that is not ready


def test_canary_gets_nothing_while_it_is_not_ready_and_keeps_its_step() -> None:
    played = Played(policy()).tick(0).tick(30).tick(31, is_ready=False)
    assert played.stands == (Phase.WAITING, 0)
    assert played.last == "the canary is not ready; the stable side serves alone"
    assert played.tick(1000, is_ready=False).stands == (Phase.WAITING, 0)
    played.tick(1001)
    assert played.stands == (Phase.PROGRESSING, 5)
    assert (played.rollout.step, played.rollout.step_seconds) == (1, 30.0)
    assert played.tick(1030).percent == 5
    assert played.tick(1031).percent == 25


def test_canary_that_was_promoted_gets_nothing_while_it_is_not_ready() -> None:
    played = Played(policy([{"setWeight": 100}], guards=None)).tick(0)
    assert played.stands == (Phase.PROMOTED, 100)
    assert played.tick(1, is_ready=False).stands == (Phase.PROMOTED, 0)
    assert played.tick(2).stands == (Phase.PROMOTED, 100)
    assert [change.kind for change in played.changes[-2:]] == [ChangeKind.CANARY_NOT_READY, ChangeKind.CANARY_READY]


# Guards


def test_breach_takes_the_weight_away_at_once_and_for_good() -> None:
    played = Played(policy()).tick(0).tick(10, BREACH)
    assert played.stands == (Phase.ABORTED, 0)
    assert played.changes[-1] == Change(ChangeKind.ABORTED, 10, "aborted by its guards: figures of breach", 0)
    assert played.rollout.figures == "figures of breach"
    for now in (11, 100, 10_000):
        assert played.tick(now).stands == (Phase.ABORTED, 0)
    for act in (played.policy.pause, played.policy.resume, played.policy.promote):
        with pytest.raises(FailedPrecondition, match=r"got one that was aborted by its guards: figures of breach"):
            act(played.rollout, now=10_001, who="ann")


@pytest.mark.parametrize("is_ready", [True, False])
def test_breach_aborts_when_an_operator_has_paused_or_the_canary_is_not_ready(is_ready: bool) -> None:
    played = Played(policy()).tick(0)
    played.then(played.policy.pause(played.rollout, now=1, who="ann"))
    assert played.tick(2, BREACH, is_ready=is_ready).stands == (Phase.ABORTED, 0)


def test_breach_is_nothing_to_a_canary_that_was_promoted() -> None:
    played = Played(policy()).tick(0)
    played.then(played.policy.promote(played.rollout, now=1, who="ann"))
    assert played.tick(2, BREACH).stands == (Phase.PROMOTED, 100)


def test_readiness_is_no_news_of_a_canary_that_was_aborted() -> None:
    played = Played(policy()).tick(0).tick(1, BREACH)
    told = len(played.changes)
    assert played.tick(2, is_ready=False).tick(3).stands == (Phase.ABORTED, 0)
    assert len(played.changes) == told


@pytest.mark.parametrize("judgement", [LACKING, None])
def test_pause_does_not_end_before_its_guards_have_seen_enough(judgement: Judgement | None) -> None:
    played = Played(policy()).tick(0, judgement)
    for now in (60, 3600):
        assert played.tick(now, judgement).stands == (Phase.PROGRESSING, 5)
    assert played.rollout.reason.startswith("waits for its guards to have seen enough")
    assert played.tick(3601).percent == 25


def test_reason_tells_what_the_guards_lack() -> None:
    played = Played(policy()).tick(0, LACKING).tick(60, LACKING)
    assert played.rollout.reason == "waits for its guards to have seen enough: figures of not_enough_samples"


def test_time_alone_decides_when_there_are_no_guards() -> None:
    played = Played(policy(guards=None)).tick(0, None)
    assert played.tick(59, None).percent == 5
    assert played.tick(60, None).percent == 25


def test_canary_is_not_promoted_without_samples_when_no_pause_is_before_that() -> None:
    played = Played(policy([{"setWeight": 5}, {"setWeight": 100}])).tick(0, LACKING)
    assert played.tick(10_000, LACKING).stands == (Phase.PROGRESSING, 5)
    assert played.tick(10_001).stands == (Phase.PROMOTED, 100)


def test_pause_before_the_first_weight_ends_by_time_for_there_is_nothing_to_judge() -> None:
    played = Played(policy([{"pause": 60}, {"setWeight": 5}, {"pause": {}}])).tick(0, LACKING)
    assert played.stands == (Phase.PROGRESSING, 0)
    assert played.tick(60, LACKING).stands == (Phase.PAUSED, 5)


def test_guards_have_their_say_after_an_operator_has_ended_a_wait() -> None:
    played = Played(policy()).tick(0).tick(60)
    played.then(played.policy.resume(played.rollout, now=61, who="ann"))
    assert played.tick(62, LACKING).stands == (Phase.PROGRESSING, 25)
    assert played.tick(63).stands == (Phase.PROMOTED, 100)


# Operators


def test_time_does_not_count_while_an_operator_has_paused() -> None:
    played = Played(policy()).tick(0).tick(20)
    played.then(played.policy.pause(played.rollout, now=30, who="ann"))
    assert played.stands == (Phase.PAUSED, 5)
    assert (played.rollout.reason, played.rollout.who) == ("paused by ann", "ann")
    assert played.tick(1000).stands == (Phase.PAUSED, 5)
    played.then(played.policy.resume(played.rollout, now=1010, who="bob"))
    assert played.stands == (Phase.PROGRESSING, 5)
    assert played.tick(1039).percent == 5
    assert played.tick(1040).percent == 25
    assert [(change.who, change.text) for change in played.changes if change.who] == [
        ("ann", "paused by ann"),
        ("bob", "resumed by bob"),
    ]


def test_step_that_waits_for_an_operator_goes_on_waiting_when_a_pause_is_lifted() -> None:
    played = Played(policy()).tick(0).tick(60)
    played.then(played.policy.pause(played.rollout, now=61, who="ann"))
    played.then(played.policy.resume(played.rollout, now=62, who="ann"))
    assert played.tick(63).stands == (Phase.PAUSED, 25)
    played.then(played.policy.resume(played.rollout, now=64, who="ann"))
    assert played.tick(65).stands == (Phase.PROMOTED, 100)


def test_each_step_that_waits_for_an_operator_waits_for_itself() -> None:
    played = Played(policy([{"setWeight": 5}, {"pause": {}}, {"pause": {}}])).tick(0)
    played.then(played.policy.resume(played.rollout, now=1, who="ann"))
    assert played.tick(2).stands == (Phase.PAUSED, 5)
    assert played.rollout.reason == "step 3 of 3: waits for an operator"


def test_pause_holds_when_the_canary_gets_ready_meanwhile() -> None:
    played = Played(policy())
    played.then(played.policy.pause(played.rollout, now=0, who="ann"))
    assert played.stands == (Phase.WAITING, 0)
    assert played.rollout.reason == "waits for the canary to be ready; paused by ann"
    assert played.tick(1).stands == (Phase.PAUSED, 0)


def test_operator_promotes_at_once_whatever_steps_and_guards_say() -> None:
    played = Played(policy()).tick(0, LACKING)
    played.then(played.policy.pause(played.rollout, now=1, who="ann"))
    played.then(played.policy.promote(played.rollout, now=2, who="bob"))
    assert played.stands == (Phase.PROMOTED, 100)
    assert played.changes[-1] == Change(
        ChangeKind.PROMOTED, 2, "promoted by bob; figures of not_enough_samples", 100, "bob"
    )
    assert (played.rollout.reason, played.rollout.who) == ("promoted by bob", "bob")


def test_canary_cannot_be_promoted_when_it_is_not_ready() -> None:
    played = Played(policy())
    with pytest.raises(FailedPrecondition, match="expected a canary that is ready to be promoted"):
        played.policy.promote(played.rollout, now=0, who="ann")


@pytest.mark.parametrize(("why", "told"), [("", "aborted by ann"), ("odd answers", "aborted by ann: odd answers")])
def test_operator_aborts_for_good(why: str, told: str) -> None:
    played = Played(policy()).tick(0)
    played.then(played.policy.abort(played.rollout, now=1, who="ann", why=why))
    assert played.stands == (Phase.ABORTED, 0)
    assert (played.rollout.reason, played.rollout.who) == (told, "ann")
    assert played.changes[-1] == Change(ChangeKind.ABORTED, 1, told, 0, "ann")
    assert played.tick(1000).stands == (Phase.ABORTED, 0)
    with pytest.raises(FailedPrecondition, match="aborted by ann"):
        played.policy.abort(played.rollout, now=1001, who="bob")


def test_operator_aborts_what_was_promoted() -> None:
    played = Played(policy([{"setWeight": 100}], guards=None)).tick(0)
    played.then(played.policy.abort(played.rollout, now=1, who="ann"))
    assert played.stands == (Phase.ABORTED, 0)


def test_what_goes_on_already_cannot_be_resumed_nor_paused_twice() -> None:
    played = Played(policy()).tick(0)
    with pytest.raises(FailedPrecondition, match=r"got one that is not: step 2 of 5: pauses for 1m"):
        played.policy.resume(played.rollout, now=1, who="ann")
    played.then(played.policy.pause(played.rollout, now=1, who="ann"))
    with pytest.raises(FailedPrecondition, match="got one that ann paused already"):
        played.policy.pause(played.rollout, now=2, who="bob")


@pytest.mark.parametrize("act", ["pause", "resume", "promote", "abort"])
def test_operator_needs_a_name(act: str) -> None:
    played = Played(policy()).tick(0)
    with pytest.raises(InvalidArgument, match="expected the name of the operator"):
        getattr(played.policy, act)(played.rollout, now=1, who=" ")


# Restarts


def test_stored_rollout_goes_on_where_it_was_when_it_is_the_same() -> None:
    played = Played(policy()).tick(1000).tick(1040)
    stored = read_rollout(rollout_document(played.rollout))
    again = Played(policy())
    again.rollout = again.policy.start(IDENTITY, stored=stored)
    assert again.stands == (Phase.WAITING, 0)
    assert again.tick(5).stands == (Phase.PROGRESSING, 5)
    assert again.tick(24).percent == 5
    assert again.tick(25).percent == 25


def test_nothing_goes_to_a_canary_before_the_first_tick_after_a_change_of_the_config() -> None:
    played = Played(policy()).tick(0)
    played.rollout = played.policy.start(IDENTITY, stored=played.rollout)
    assert played.stands == (Phase.WAITING, 0)
    assert played.tick(1).stands == (Phase.PROGRESSING, 5)


def test_stored_rollout_waits_for_its_promotion_again_when_all_steps_are_done() -> None:
    played = Played(policy([{"setWeight": 5}, {"pause": 60}]))
    played.rollout = played.policy.start(IDENTITY, stored=Rollout(IDENTITY, step=2))
    assert played.tick(0, LACKING).stands == (Phase.PROGRESSING, 5)
    assert played.tick(1).stands == (Phase.PROMOTED, 100)


def test_time_does_not_count_twice_when_moments_come_out_of_order() -> None:
    played = Played(policy()).tick(0).tick(30).tick(10).tick(59)
    assert played.rollout.step_seconds == 59
    assert played.tick(60).percent == 25


def test_rollout_begins_anew_when_it_is_another_one() -> None:
    stored = replace(Played(policy()).tick(0).tick(1, BREACH).rollout, identity=OTHER)
    begun = policy().start(IDENTITY, stored=stored)
    assert begun == policy().start(IDENTITY)
    assert (begun.identity, begun.phase, begun.step) == (IDENTITY, Phase.WAITING, 0)


@pytest.mark.parametrize("judgement", [BREACH, OK])
def test_final_phase_survives_a_restart(judgement: Judgement) -> None:
    played = Played(policy([{"setWeight": 5}, {"setWeight": 100}])).tick(0, LACKING).tick(1, judgement)
    again = Played(played.policy)
    again.rollout = again.policy.start(IDENTITY, stored=read_rollout(rollout_document(played.rollout)))
    assert again.percent == 0
    assert again.tick(0, LACKING).stands == played.stands
    assert again.rollout.reason == played.rollout.reason


def test_stored_rollout_is_refused_when_it_is_at_a_step_that_there_is_not() -> None:
    with pytest.raises(DataLoss, match="expected a stored rollout at one of 5 steps, got step 7"):
        policy().start(IDENTITY, stored=Rollout(IDENTITY, step=6))


# Whatever happens

WEIGHTS = st.lists(st.integers(min_value=0, max_value=99), min_size=1, max_size=4).map(sorted)
PAUSES: st.SearchStrategy[dict[str, Any]] = st.sampled_from([{"pause": 1}, {"pause": 30}, {"pause": {}}])
OPERATORS = ("pause", "resume", "promote", "abort")
EVENTS = st.lists(
    st.tuples(
        st.floats(min_value=0, max_value=40),
        st.sampled_from([*["tick"] * 6, *OPERATORS, "restart"]),
        st.booleans() | st.just(True),
        st.sampled_from([OK, OK, OK, LACKING, None, BREACH]),
    ),
    max_size=40,
)


@st.composite
def policies(draw: st.DrawFn) -> RolloutPolicy:
    steps: list[dict[str, Any]] = []
    for weight in draw(WEIGHTS):
        steps.append({"setWeight": weight})
        steps += draw(st.lists(PAUSES, max_size=2))
    steps += draw(st.sampled_from([[], [{"setWeight": 100}]]))
    judges = any(0 < step.get("setWeight", 0) < 100 for step in steps)
    return policy(steps, guards=draw(st.sampled_from([None, GUARDS] if judges else [None])))


def happen(
    rules: RolloutPolicy, rollout: Rollout, event: tuple[float, str, bool, Judgement | None], now: float
) -> Outcome:
    _, what, is_ready, judgement = event
    if what == "restart":
        return rules.start(IDENTITY, stored=read_rollout(rollout_document(rollout))), ()
    if what == "tick":
        return rules.tick(rollout, now=now, is_ready=is_ready, judgement=judgement)
    try:
        outcome: Outcome = getattr(rules, what)(rollout, now=now, who="ann")
    except ServePruneError:
        return rollout, ()
    return outcome


@settings(max_examples=300)
@given(policies(), EVENTS)
def test_rules_hold_whatever_happens(
    rules: RolloutPolicy, events: list[tuple[float, str, bool, Judgement | None]]
) -> None:
    rollout, now, was_ready, promoted_by_hand = rules.start(IDENTITY), 0.0, False, False
    percent = 0
    for event in events:
        seconds, what, is_ready, judgement = event
        now += seconds
        before = rollout
        rollout, changes = happen(rules, rollout, event, now)
        if what in ("tick", "restart"):
            was_ready = what == "tick" and is_ready
        weights = rules.weights(rollout)
        assert weights.canary_percent + weights.stable_percent == 100
        assert 0 <= weights.canary_percent <= 100
        # Nothing goes to a canary that is not ready; it keeps its step.
        if not was_ready:
            assert weights.canary_percent == 0
            assert rollout.step == before.step
        # An abort is final, and a breach is an abort.
        if before.phase is Phase.ABORTED or (what == "tick" and judgement is BREACH and not before.phase.is_final):
            assert rollout.phase is Phase.ABORTED
        if rollout.phase is Phase.ABORTED:
            assert weights.canary_percent == 0
        # Steps are never undone, and where there are guards only end while those agree.
        assert rollout.step >= before.step
        promoted_by_hand = promoted_by_hand or (what == "promote" and rollout.phase is Phase.PROMOTED)
        rises = rules.weights(replace(rollout, is_ready=True)).canary_percent > max(percent, 0)
        if rises and percent > 0 and rules.canary.guards is not None and not promoted_by_hand:
            assert judgement is OK or _rises_without_a_pause(rules, before, rollout)
        percent = rules.weights(replace(rollout, is_ready=True)).canary_percent
        # Whoever reads the log knows the weight.
        if changes:
            assert changes[-1].canary_percent == weights.canary_percent
        assert rollout.reason


def _rises_without_a_pause(rules: RolloutPolicy, before: Rollout, after: Rollout) -> bool:
    return all(step.pause is None for step in rules.canary.steps[before.step : after.step])


@given(policies(), st.lists(st.floats(min_value=0.1, max_value=40), min_size=1))
def test_canary_that_is_ready_and_well_is_promoted_in_the_time_of_its_pauses(
    rules: RolloutPolicy, ticks: list[float]
) -> None:
    played, now = Played(rules), 0.0
    pauses = [step.pause.duration_seconds or 0.0 for step in rules.canary.steps if step.pause is not None]
    needed = sum(pauses)
    for tick in [0.0, *ticks, *[40.0] * 40]:
        now += tick
        played.tick(now)
        if played.rollout.phase is Phase.PAUSED:
            played.then(rules.resume(played.rollout, now=now, who="ann"))
        if played.rollout.phase is Phase.PROMOTED:
            break
    assert played.rollout.phase is Phase.PROMOTED
    assert now >= needed
