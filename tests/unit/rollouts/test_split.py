from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveprune.rollouts.split import StickySplit, WeightedSplit

TIERS = ("dense", "int8", "lean", "sparse", "ticket", "wide")
WEIGHTS = st.dictionaries(st.sampled_from(TIERS), st.integers(min_value=0, max_value=40), min_size=1).filter(
    lambda weights: any(weights.values())
)


def test_canary_of_five_percent_gets_every_twentieth_request() -> None:
    split = WeightedSplit({"canary": 5, "stable": 95})
    served = [split.choose() for _ in range(200)]
    assert [index for index, tier in enumerate(served) if tier == "canary"] == [*range(18, 200, 20)]


def test_two_tiers_of_equal_weight_take_turns() -> None:
    split = WeightedSplit({"dense": 7, "int8": 7})
    assert [split.choose() for _ in range(4)] == ["dense", "int8", "dense", "int8"]


@given(WEIGHTS)
def test_split_is_exact_within_one_request_at_every_moment(weights: dict[str, int]) -> None:
    split, whole = WeightedSplit(weights), sum(weights.values())
    served: Counter[str] = Counter()
    for requests in range(1, 2 * whole + 2):
        served[split.choose()] += 1
        for tier, weight in weights.items():
            # |served - requests * share| < 1, in whole numbers.
            assert abs(served[tier] * whole - requests * weight) < whole


@given(WEIGHTS)
def test_split_is_exact_after_as_many_requests_as_the_weights_add_up_to(weights: dict[str, int]) -> None:
    split = WeightedSplit(weights)
    served = Counter(split.choose() for _ in range(3 * sum(weights.values())))
    assert served == Counter({tier: 3 * weight for tier, weight in weights.items()})


@pytest.mark.parametrize("weights", [{"canary": 0, "stable": 100}, {"stable": 100, "canary": 0}])
def test_tier_without_weight_gets_nothing(weights: dict[str, int]) -> None:
    split, sticky = WeightedSplit(weights), StickySplit(weights, salt="")
    assert {split.choose() for _ in range(300)} == {"stable"}
    assert {sticky.choose(str(key)) for key in range(300)} == {"stable"}


def sticky(percent: int, salt: str = "a") -> StickySplit:
    return StickySplit({"canary": percent, "stable": 100 - percent}, salt=salt)


@given(st.text(), st.text(), st.lists(st.integers(min_value=0, max_value=100), min_size=2).map(sorted))
def test_key_never_leaves_a_canary_whose_weight_rises(key: str, salt: str, percents: list[int]) -> None:
    sides = [sticky(percent, salt).choose(key) for percent in percents]
    assert sides == sorted(sides, key=["stable", "canary"].index)


@pytest.mark.parametrize(
    ("key", "place"),
    # What a release has drawn stays: int.from_bytes(blake2b(key, digest_size=8, salt=blake2b(b"a", digest_size=16)
    # .digest()).digest(), "big") / 2**64
    [("user-0", 0.1110), ("user-1", 0.6356), ("user-2", 0.1054), ("user-3", 0.9013), ("user-7", 0.2045)],
)
def test_key_has_the_same_place_in_every_process_and_release(key: str, place: float) -> None:
    on_canary = [percent for percent in range(101) if sticky(percent).choose(key) == "canary"]
    assert on_canary == [percent for percent in range(101) if percent > 100 * place]


def test_keys_are_spread_by_weight() -> None:
    split = StickySplit({"a": 1, "b": 2, "c": 7}, salt="x")
    served = Counter(split.choose(f"user-{number}") for number in range(20_000))
    # Four standard deviations of a binomial of 20,000.
    for tier, share in (("a", 0.1), ("b", 0.2), ("c", 0.7)):
        assert abs(served[tier] - 20_000 * share) < 4 * (20_000 * share * (1 - share)) ** 0.5


def test_another_salt_draws_other_keys() -> None:
    keys = [f"user-{number}" for number in range(2000)]
    chosen = [{key for key in keys if sticky(10, salt).choose(key) == "canary"} for salt in ("a", "b")]
    assert len(chosen[0] & chosen[1]) < 60


def test_key_may_hold_what_utf_8_lacks() -> None:
    assert sticky(50).choose("\ud800") == sticky(50).choose("\ud800")
