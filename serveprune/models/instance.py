import logging
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from serveprune.backends.protocol import Session
from serveprune.errors import InvalidArgument, ServePruneError, Unavailable
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import DYNAMIC, Array, TensorSpec

_log = logging.getLogger(__name__)

_WARM_ROWS = (1, 2)
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
        return _example(self.inputs, rows)

    def warm(self) -> None:
        """Run the graph once per small batch size on made-up inputs, and learn whether rows may be batched.

        A graph that refuses made-up inputs is served all the same, one request at a time.
        """
        try:
            single, double = (self._session.run(self.example(rows)) for rows in _WARM_ROWS)
        except ServePruneError as error:
            _log.info("warm-up with made-up inputs was refused, so requests are not batched: %s", error.message)
            return
        dynamic = all(spec.shape and spec.shape[0] == DYNAMIC for spec in (*self.inputs, *self.outputs))
        apart = all(map(_is_first_row, single, double)) if self._dense is None else self._dense.batchable
        self.batchable = dynamic and apart


def _example(specs: Sequence[TensorSpec], rows: int) -> dict[str, Array]:
    """Make inputs whose first row is the same whatever the number of rows, and differs from the second."""
    feeds: dict[str, Array] = {}
    for spec in specs:
        if spec.datatype is Datatype.BYTES:
            raise InvalidArgument(f"input {spec.name} takes strings, for which no example can be made up")
        shape = [_WARM_SEQUENCE if size == DYNAMIC else size for size in spec.shape]
        if spec.shape and spec.shape[0] == DYNAMIC:
            shape[0] = rows
        if spec.datatype.dtype.kind == "f":
            values = np.resize(np.linspace(-1.0, 1.0, 7), shape)
        else:
            # Ones are valid token ids, mask entries and flags alike.
            values = np.ones(shape)
            values[1:] = 0
        feeds[spec.name] = values.astype(spec.datatype.dtype)
    return feeds


def _is_first_row(single: Array, double: Array) -> bool:
    if len(single) != _WARM_ROWS[0] or len(double) != _WARM_ROWS[1]:
        return False
    if single.dtype.kind != "f":
        return True
    scale = float(np.max(np.abs(single), initial=0.0)) or 1.0
    return bool(np.max(np.abs(single[0] - double[0]), initial=0.0) <= _ROW_TOLERANCE * scale)
