import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveprune.scheduling.fair_share import FairShare

WEIGHTS = st.dictionaries(st.sampled_from("abcd"), st.sampled_from((0.5, 1.0, 2.0, 5.0)), min_size=2)


@given(WEIGHTS, st.data())
def test_compute_time_is_divided_by_weight_when_all_have_work(weights: dict[str, float], data: st.DataObject) -> None:
    share, lead = FairShare(weights, lead_seconds=0.1), 0.1
    models = sorted(weights)
    for index, model in enumerate(models):
        share.enter(model, others=models[:index])
    had = dict.fromkeys(models, 0.0)
    longest = 0.0
    for _ in range(60):
        # Whoever is eligible may be chosen: urgency decides, and here the worst it could.
        chosen = data.draw(st.sampled_from(sorted(share.eligible(models))))
        seconds = data.draw(st.floats(0.01, 0.3))
        share.charge(chosen, seconds)
        had[chosen] += seconds
        longest = max(longest, seconds / weights[chosen])
        virtual = [had[model] / weights[model] for model in models]
        assert max(virtual) - min(virtual) <= lead + longest + 1e-9


def test_everybody_has_weight_one_who_is_not_named() -> None:
    share = FairShare({"a": 2.0}, lead_seconds=0.0)
    share.charge("a", 1.0)
    share.charge("b", 0.6)
    assert share.eligible(["a", "b"]) == ["a"]


@pytest.mark.parametrize("others_wait", [True, False])
def test_nobody_saves_up_while_idle(others_wait: bool) -> None:
    """Whether the queue of the busy model happens to be empty at the moment or not."""
    share = FairShare({}, lead_seconds=0.1)
    share.enter("busy", others=())
    for _ in range(100):
        share.charge("busy", 1.0)
    share.enter("idle", others=["busy"] if others_wait else [])
    share.enter("busy", others=["idle"])
    share.charge("idle", 1.2)
    assert share.eligible(["busy", "idle"]) == ["busy"]


def test_nobody_pays_for_having_computed_while_others_were_idle() -> None:
    share = FairShare({}, lead_seconds=0.1)
    share.enter("early", others=())
    for _ in range(100):
        share.charge("early", 1.0)
    # Nothing waits for it any more when the late one comes and computes for a while.
    share.enter("late", others=())
    share.charge("late", 1.0)
    share.enter("early", others=["late"])
    assert set(share.eligible(["early", "late"])) == {"early", "late"}


def test_corrections_count_like_charges() -> None:
    share = FairShare({"a": 2.0}, lead_seconds=0.0)
    share.charge("a", 4.0)
    share.charge("b", 1.0)
    share.correct("a", -2.5)
    assert share.eligible(["a", "b"]) == ["a"]
    share.correct("a", 1.0)
    assert share.eligible(["a", "b"]) == ["b"]


def test_those_within_the_lead_are_eligible() -> None:
    share = FairShare({}, lead_seconds=0.5)
    share.charge("a", 0.4)
    share.charge("b", 0.6)
    assert share.eligible(["a", "b", "c"]) == ["a", "c"]


@pytest.mark.parametrize(
    ("model", "waiting", "expected"),
    [
        ("a", {}, 0.0),
        ("a", {"a": 3.0}, 3.0),
        # Of another one's work no more than its share beside one's own, and its lead.
        ("a", {"a": 3.0, "b": 100.0}, 3.0 + 2 * (3.0 + 0.1)),
        ("b", {"a": 100.0, "b": 3.0}, 3.0 + (3.0 / 2 + 0.1)),
        ("c", {"a": 100.0, "b": 0.05}, 0.1 + 0.05),
        ("a", {"a": 3.0, "b": 0.5}, 3.5),
    ],
)
def test_seconds_ahead_are_ones_own_and_the_shares_of_others(
    model: str, waiting: dict[str, float], expected: float
) -> None:
    share = FairShare({"b": 2.0}, lead_seconds=0.1)
    assert share.seconds_ahead(model, waiting) == pytest.approx(expected)
