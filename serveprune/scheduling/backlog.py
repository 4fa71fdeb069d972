"""How long it takes until executors are free. Pure."""

from collections.abc import Sequence


def seconds_until_free(busy_seconds: Sequence[float], waiting_seconds: float) -> float:
    """Return when the first executor is free that has done its part of what waits.

    Args:
        busy_seconds: For each executor what is left of its batch; 0 if it idles.
        waiting_seconds: Compute time of all that waits, which they share as they become free.
    """
    level, left = 0.0, waiting_seconds
    ascending = sorted(max(busy, 0.0) for busy in busy_seconds)
    for index, busy in enumerate(ascending):
        # Up to here `index` executors have been working together.
        room = (busy - level) * index
        if index and left <= room:
            return level + left / index
        left -= room
        level = busy
        if left <= 0:
            return level
    return level + left / len(ascending)
