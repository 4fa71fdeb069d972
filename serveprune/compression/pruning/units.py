from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
"""One unit id per position of an axis."""

_UNPINNED = 0


class RemovalUnits:
    """Disjoint sets of weight positions that can only be removed together.

    A *unit* is what goes as a whole: a channel with every weight slice that makes or reads it. Units start as
    single positions of weight axes, are joined while the graph is walked, and may be pinned, for a reason.
    All operations take whole axes: an axis of 50,000 positions costs a few array operations.
    """

    def __init__(self) -> None:
        self._count = 0
        self._parents = np.zeros(0, np.int64)
        self._reason_of = np.zeros(0, np.int32)
        self._reasons: dict[str, int] = {"": _UNPINNED}

    def __len__(self) -> int:
        return self._count

    def fresh(self, count: int) -> Ids:
        """Return so many new units."""
        start, self._count = self._count, self._count + count
        if self._count > len(self._parents):
            room = max(self._count, 2 * len(self._parents)) - len(self._parents)
            added = np.arange(len(self._parents), len(self._parents) + room)
            self._parents = np.concatenate([self._parents, added])
            self._reason_of = np.concatenate([self._reason_of, np.zeros(room, np.int32)])
        return np.arange(start, self._count, dtype=np.int64)

    def find(self, unit: int) -> int:
        """Return the representative of the unit's set."""
        return int(self.roots(np.array([unit]))[0])

    def roots(self, ids: Ids) -> Ids:
        """Return the representatives of several units, in the same shape."""
        flat = ids.ravel()
        found = self._parents[flat]
        while True:
            above = self._parents[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parents[flat] = found
        return found.reshape(ids.shape)

    def join(self, first: Ids, second: Ids) -> None:
        """Couple two axes position by position; both are of the same length."""
        assert len(first) == len(second)
        while True:
            one, other = self.roots(first), self.roots(second)
            apart = one != other
            if not apart.any():
                return
            low, high = np.minimum(one, other)[apart], np.maximum(one, other)[apart]
            # A root that meets several others moves under the lowest; the next round joins the rest.
            np.minimum.at(self._parents, high, low)
            codes = self._reason_of[high]
            self._mark(self.roots(high)[codes != _UNPINNED], codes[codes != _UNPINNED])

    def join_all(self, ids: Iterable[int]) -> None:
        """Couple all of these units."""
        self.join_rows(np.array(list(ids), np.int64).reshape(1, -1))

    def join_rows(self, rows: Ids) -> None:
        """Couple all units of each row with each other, ``(rows, units)``."""
        self.join(rows[:, :-1].ravel(), rows[:, 1:].ravel())

    def pin(self, ids: Ids, reason: str) -> None:
        """Forbid the removal of these units and of all that is, or will be, joined with them."""
        roots = self.roots(ids.ravel())
        code = self._reasons.setdefault(reason, len(self._reasons))
        self._mark(roots, np.full(len(roots), code, np.int32))

    def pinned(self, ids: Ids) -> NDArray[np.bool_]:
        """Tell for each of several units whether it must stay."""
        return np.asarray(self._reason_of[self.roots(ids)] != _UNPINNED)

    def pinned_because(self, unit: int) -> str | None:
        """Return why a unit must stay, or ``None`` if it may go."""
        code = int(self._reason_of[self.find(unit)])
        return None if code == _UNPINNED else list(self._reasons)[code]

    def _mark(self, roots: Ids, codes: NDArray[np.int32]) -> None:
        """Note the reasons of roots that have none yet."""
        new = self._reason_of[roots] == _UNPINNED
        self._reason_of[roots[new]] = codes[new]
