import logging
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from serveprune.backends.protocol import Session
from serveprune.errors import InvalidArgument, ServePruneError, Unavailable
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import DYNAMIC, Array, TensorSpec

_log = logging.getLogger(__name__)

_WARM_SEQUENCE = 8
_ROW_TOLERANCE = 1e-3


class Instance:
    """A loaded variant that counts who uses it, so that it is closed only when the last one is done.

    Attributes:
        batchable: Rows of different requests may share a run: every input and output has a dynamic leading
            axis, and the graph treats rows apart. Decided by `warm`.
        max_batch_size: Rows computed at once.
    """

    def __init__(
        self,
        session: Session,
        *,
        identity: tuple[str, str, str],
        max_batch_size: int,
        dense: "Instance | None" = None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """Take over a session.

        Args:
            session: Closed when the last user of the retired instance is done.
            identity: Model, version and tier.
            max_batch_size: Rows computed at once.
            dense: The dense variant of the same model, for a compressed tier. Whether rows are apart is judged
                on the dense graph only: int8 with a dynamic scale moves a little with its neighbours.
            on_close: Called once, after the session was closed.
        """
        self._session = session
        self._on_close = on_close
        self._dense = dense
        self._users = 0
        self._retired = False
        self._lock = threading.Lock()
        self.identity = identity
        self.max_batch_size = max_batch_size
        self.batchable = False
        self.inputs = session.inputs
        self.outputs = session.outputs
        self.output_names = tuple(spec.name for spec in session.outputs)

    def acquire(self) -> None:
        """Announce one more use.

        Raises:
            Unavailable: The instance is being taken out of service.
        """
        with self._lock:
            if self._retired:
                raise Unavailable("the tier is being replaced", retry_after_seconds=0.1)
            self._users += 1

    def release(self) -> None:
        """End one use; the last one of a retired instance closes it."""
        with self._lock:
            self._users -= 1
            close = self._retired and self._users == 0
        if close:
            self._close()

    def retire(self) -> None:
        """Take no new users, and close once the present ones are done."""
        with self._lock:
            if self._retired:
                return
            self._retired = True
            close = self._users == 0
        if close:
            self._close()

    def _close(self) -> None:
        self._session.close()
        self._on_close()

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        """See `Session.run`."""
        return self._session.run(feeds, outputs=outputs)

    def example(self, rows: int) -> dict[str, Array]:
        """Make up inputs of so many rows.

        Raises:
            InvalidArgument: An input takes strings.
        """
        return _example(self.inputs, range(rows))

    def warm(self) -> None:
        """Run the graph on two made-up rows, apart and together, and learn whether rows may be batched.

        A graph that refuses made-up inputs is served all the same, one request at a time.
        """
        try:
            first, second, both = (self._session.run(_example(self.inputs, rows)) for rows in ((0,), (1,), (0, 1)))
        except ServePruneError as error:
            _log.info("warm-up with made-up inputs was refused, so requests are not batched: %s", error.message)
            return
        dynamic = all(spec.shape and spec.shape[0] == DYNAMIC for spec in (*self.inputs, *self.outputs))
        apart = all(map(_are_apart, first, second, both)) if self._dense is None else self._dense.batchable
        self.batchable = dynamic and apart
        if dynamic and not apart:
            model, _, tier = self.identity
            _log.info("%s %s: a row's answer depends on its neighbours, so requests are not batched", model, tier)


def _example(specs: Sequence[TensorSpec], rows: Sequence[int]) -> dict[str, Array]:
    """Make inputs of which each row depends on its number alone, and differs from all others."""
    feeds: dict[str, Array] = {}
    for spec in specs:
        if spec.datatype is Datatype.BYTES:
            raise InvalidArgument(f"input {spec.name} takes strings, for which no example can be made up")
        sizes = [_WARM_SEQUENCE if size == DYNAMIC else size for size in spec.shape]
        if spec.shape and spec.shape[0] == DYNAMIC:
            values = np.stack([_example_row(sizes[1:], row, spec.datatype) for row in rows])
        else:
            values = _example_row(sizes, 0, spec.datatype)
        feeds[spec.name] = values.astype(spec.datatype.dtype)
    return feeds


def _example_row(sizes: Sequence[int], row: int, datatype: Datatype) -> Array:
    random = np.random.default_rng(row)
    if datatype.dtype.kind == "f":
        return random.uniform(-1.0, 1.0, sizes)
    # Zeros and ones are valid token ids, mask entries and flags alike.
    values = np.ones(sizes, dtype=np.int64) if row == 0 else random.integers(0, 2, sizes)
    if row and values.size:
        # A one, for a mask of zeros alone makes many a graph divide by zero; and a zero, unlike in row 0.
        values.flat[0], values.flat[-1] = 1, 0
    return values


def _are_apart(first: Array, second: Array, both: Array) -> bool:
    """Tell whether two rows got the same answers together as each did alone."""
    if first.ndim == 0 or second.ndim == 0 or both.ndim == 0 or (len(first), len(second), len(both)) != (1, 1, 2):
        return False
    alone = np.concatenate([first, second])
    if alone.dtype.kind != "f":
        return bool(np.array_equal(alone, both))
    scale = float(np.max(np.abs(alone), initial=0.0)) or 1.0
    return bool(np.max(np.abs(alone - both), initial=0.0) <= _ROW_TOLERANCE * scale)
