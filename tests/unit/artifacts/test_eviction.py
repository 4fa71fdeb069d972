from hypothesis import given
from hypothesis import strategies as st

from serveprune.artifacts.eviction import Evictable, evict

CANDIDATES = st.lists(
    st.builds(
        Evictable, key=st.text("abcdef", min_size=1, max_size=3), bytes=st.integers(0, 9), last_used=st.integers(0, 5)
    ),
    unique_by=lambda one: one.key,
    max_size=8,
)
KEYS = st.sets(st.text("abcdef", min_size=1, max_size=3))


@given(CANDIDATES, st.integers(-5, 40), KEYS, KEYS)
def test_evict_frees_enough_by_the_oldest_that_are_free(
    candidates: list[Evictable], excess_bytes: int, keep: set[str], leased: set[str]
) -> None:
    removed = evict(candidates, excess_bytes=excess_bytes, keep=keep, remove=lambda one: one.key not in leased)

    free = [one for one in candidates if one.key not in keep | leased]
    by_age = sorted(free, key=lambda one: (one.last_used, one.key))
    assert removed == by_age[: len(removed)]
    freed_bytes = sum(one.bytes for one in removed)
    assert freed_bytes >= excess_bytes or removed == by_age
    # The last one removed was still needed.
    assert not removed or freed_bytes - removed[-1].bytes < excess_bytes


def test_evict_asks_for_nothing_more_when_enough_is_freed() -> None:
    asked: list[str] = []

    def remove(one: Evictable) -> bool:
        asked.append(one.key)
        return one.key != "leased"

    candidates = [Evictable(key, bytes=10, last_used=age) for age, key in enumerate(("leased", "old", "mid", "new"))]
    removed = evict(candidates, excess_bytes=15, remove=remove)
    assert [one.key for one in removed] == ["old", "mid"]
    assert asked == ["leased", "old", "mid"]
