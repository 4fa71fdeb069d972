from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Evictable:
    """Something that takes room and may be removed.

    Attributes:
        bytes: Room that removing it frees.
        last_used: Any clock; only the order counts.
    """

    key: str
    bytes: int
    last_used: int


def evict(
    candidates: Iterable[Evictable],
    *,
    excess_bytes: int,
    keep: Collection[str] = (),
    remove: Callable[[Evictable], bool],
) -> list[Evictable]:
    """Remove the least recently used until ``excess_bytes`` are freed, and return what was removed.

    Args:
        candidates: In any order; equal times are ordered by key.
        excess_bytes: How much has to go; nothing is removed when it is not above zero.
        keep: Keys that are not to be touched.
        remove: Removes one, or returns False because it is in use; then the next one has to go.
    """
    removed: list[Evictable] = []
    for candidate in sorted(candidates, key=lambda one: (one.last_used, one.key)):
        if excess_bytes <= 0:
            break
        if candidate.key not in keep and remove(candidate):
            removed.append(candidate)
            excess_bytes -= candidate.bytes
    return removed
