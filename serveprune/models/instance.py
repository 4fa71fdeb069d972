import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from serveprune.backends.protocol import Session
from serveprune.errors import ServePruneError, Unavailable
from serveprune.models.warm_up import (
    example,
    find_padding,
    fixed_length,
    has_dynamic_rows,
    rows_are_apart,
    time_batches,
)
from serveprune.oip.tensor import Array
from serveprune.scheduling.latency_model import LatencyModel
from serveprune.scheduling.latency_table import LatencyTable
from serveprune.scheduling.padding import Padding

_log = logging.getLogger(__name__)

_TIMING_BUDGET_SECONDS = 0.5


class InstanceRetired(Unavailable):
    """The instance is being taken out of service; another one has its place, or its tier is gone."""


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """What the operator says about a variant's batches.

    Attributes:
        max_rows: Computed at once, at the most.
        max_elements: Rows times the longest of them, padding included; ``None`` for no bound.
        max_queue_delay_seconds: A request may wait so long for others to fill its batch.
    """

    max_rows: int
    max_elements: int | None = None
    max_queue_delay_seconds: float = 0.0


class Instance:
    """A loaded variant that counts who uses it, so that it is closed only when the last one is done.

    Attributes:
        batchable: Rows of different requests may share a run: every input and output has a dynamic leading
            axis, and the graph treats rows apart. Decided by `warm`.
        fixed_length, fixed_work: See `Executable`.
        padding: How rows of different length may share one; ``None`` where they cannot. Decided by `warm`.
        latency: What batches take, timed by `warm`.
    """

    def __init__(
        self,
        session: Session,
        *,
        identity: tuple[str, str, str],
        batches: BatchSettings,
        dense: "Instance | None" = None,
        has_loops: bool = False,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """Take over a session.

        Args:
            session: Closed when the last user of the retired instance is done.
            identity: Model, version and tier.
            batches: How they may be formed.
            dense: The dense variant of the same model, for a compressed tier. Whether rows are apart is judged
                on the dense graph only: int8 with a dynamic scale moves a little with its neighbours.
            has_loops: The graph computes something as often as its inputs say.
            on_close: Called once, after the session was closed.
        """
        self._session = session
        self._on_close = on_close
        self._dense = dense
        self._users = 0
        self._retired = False
        self._lock = threading.Lock()
        self.identity = identity
        self.max_batch_size = batches.max_rows
        self.max_batch_elements = batches.max_elements
        self.max_queue_delay_seconds = batches.max_queue_delay_seconds
        self.fixed_length = fixed_length(session.inputs)
        self.fixed_work = self.fixed_length is not None and not has_loops
        self.batchable = False
        self.padding: Padding | None = None
        self.latency = LatencyModel(LatencyTable({}))
        self.inputs = session.inputs
        self.outputs = session.outputs
        self.output_names = tuple(spec.name for spec in session.outputs)

    def acquire(self) -> None:
        """Announce one more use.

        Raises:
            InstanceRetired: It is being taken out of service.
        """
        with self._lock:
            if self._retired:
                raise InstanceRetired("the tier is being replaced", retry_after_seconds=0.1)
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
        return example(self.inputs, range(rows))

    def warm(self) -> None:
        """Run the graph on made-up rows; learn whether rows may be batched, how they are padded, and what they take.

        A graph that refuses made-up inputs is served all the same, one request at a time.

        Raises:
            Unavailable: What runs it is not there.
        """
        try:
            apart = rows_are_apart(self._session)
        except Unavailable:
            # Of the graph this says nothing.
            raise
        except ServePruneError as error:
            _log.info("warm-up with made-up inputs was refused, so requests are not batched: %s", error.message)
            return
        if self._dense is not None:
            apart, self.padding = self._dense.batchable, self._dense.padding
        dynamic = has_dynamic_rows(self._session)
        self.batchable = dynamic and apart
        if dynamic and not apart:
            model, _, tier = self.identity
            _log.info("%s %s: a row's answer depends on its neighbours, so requests are not batched", model, tier)
        if self.batchable and self._dense is None:
            self.padding = find_padding(self._session)
        table = time_batches(
            self._session,
            padding=self.padding,
            max_rows=self.max_batch_size if self.batchable else 1,
            max_elements=self.max_batch_elements,
            budget_seconds=_TIMING_BUDGET_SECONDS,
        )
        self.latency = LatencyModel(table)
