"""Which of several tiers a request gets, by weight. Pure: no randomness, no clock."""

import hashlib
from collections.abc import Mapping

_PLACE_BITS = 64


class WeightedSplit:
    """Spreads requests by weight, one after the other.

    After any number of requests each tier has had its share of them, rounded up or down: never a whole request too many
    or too few. That is the proportionate fairness of Baruah et al. (Algorithmica 15, 1996); with one request at a
    time, the tier whose next request is due first among those that are not ahead keeps it. Whole numbers only, so
    that nothing drifts.

    What is exact is also periodic: if every other request were of one kind, two equal tiers would each get one kind.
    Not thread-safe.
    """

    def __init__(self, weights: Mapping[str, int]) -> None:
        """Start with nobody served.

        Args:
            weights: Tier -> weight, at least 0 and one above; relative to their sum.
        """
        self._weights = _positive(weights)
        self._sum = sum(self._weights.values())
        self._served = dict.fromkeys(self._weights, 0)
        self._requests = 0

    def choose(self) -> str:
        """Return the tier of the next request."""
        self._requests += 1
        chosen, first_due = "", 0
        for tier, weight in self._weights.items():
            served = self._served[tier]
            if served * self._sum < self._requests * weight:
                # It is due when its share of the requests would reach the next whole number.
                due = -(-(served + 1) * self._sum // weight)
                if not chosen or due < first_due:
                    chosen, first_due = tier, due
        self._served[chosen] += 1
        if self._requests == self._sum:
            # All have exactly their share.
            self._served = dict.fromkeys(self._weights, 0)
            self._requests = 0
        return chosen


class StickySplit:
    """Spreads keys by weight: the same key gets the same tier, in every process and after every restart.

    Each key has a fixed place in the unit interval, and each tier a part of it, in the order of the weights. So if the
    weight of the first one rises, here that of a canary, keys move to it, and none away from it. Exact only for
    many keys of equal use. Immutable.
    """

    def __init__(self, weights: Mapping[str, int], *, salt: str) -> None:
        """Lay out the interval.

        Args:
            weights: Tier -> weight, at least 0 and one above; relative to their sum. The canary first.
            salt: Other places for another one, so that not the same users try out every canary.
        """
        positive = _positive(weights)
        self._sum = sum(positive.values())
        self._salt = hashlib.blake2b(_bytes(salt), digest_size=hashlib.blake2b.SALT_SIZE).digest()
        end = 0
        self._ends: list[tuple[int, str]] = []
        for tier, weight in positive.items():
            end += weight
            self._ends.append((end << _PLACE_BITS, tier))

    def choose(self, key: str) -> str:
        """Return the tier of a key."""
        digest = hashlib.blake2b(_bytes(key), digest_size=_PLACE_BITS // 8, salt=self._salt).digest()
        place = int.from_bytes(digest, "big") * self._sum
        return next(tier for end, tier in self._ends if place < end)


def _positive(weights: Mapping[str, int]) -> dict[str, int]:
    positive = {tier: weight for tier, weight in weights.items() if weight > 0}
    assert positive, "no tier has a weight above 0"
    return positive


def _bytes(text: str) -> bytes:
    # JSON may bring surrogates, which UTF-8 lacks.
    return text.encode("utf-8", "surrogatepass")
