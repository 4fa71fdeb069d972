"""The end of a request: what it held is given back, it is counted, and then its caller is told."""

import threading
from collections.abc import Callable, Mapping

from prometheus_client import Gauge

from serveprune.errors import Code, ServePruneError
from serveprune.observability.request_record import RequestRecord
from serveprune.observability.tally import Tally
from serveprune.oip.tensor import Tensor
from serveprune.rollouts.side import Side
from serveprune.scheduling.job import Job, JobResult
from serveprune.serving.admission import Admission
from serveprune.serving.call import Call
from serveprune.serving.shadowing import Shadowing
from serveprune.serving.variant_series import OK

_TIMER_SLACK_SECONDS = 0.02
"""The timers of event loops ring a little early."""

_FAULTS_OF_THE_SERVER = frozenset((Code.INTERNAL, Code.DATA_LOSS, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED))
"""Codes that speak against the tier, and not against what was asked of it."""

_Computed = tuple[Call, tuple[Tensor, ...], JobResult]


class _Here(threading.local):
    """What a thread has still to settle."""

    def __init__(self) -> None:
        self.computed: list[_Computed] = []
        self.tally = Tally()


class Settlement:
    """Ends requests, those of a batch together. Thread-safe.

    Who is told can rely on it that everything is given back and counted, so that a place is free for its next request
    and the series show this one.
    """

    def __init__(
        self,
        admission: Admission,
        in_flight: Mapping[tuple[str, str], Gauge],
        shadowing: Shadowing,
        *,
        clock: Callable[[], float],
    ) -> None:
        """Remember where to give back and count.

        Args:
            admission: Gave each request its place.
            in_flight: Model and version -> its requests that have not ended.
            shadowing: Takes the samples of those that were answered.
            clock: That of the requests.
        """
        self._admission = admission
        self._in_flight = in_flight
        self._clock = clock
        self._shadowing = shadowing
        self._here = _Here()

    @property
    def tally(self) -> Tally:
        """Of the moves that this thread has still to make."""
        return self._here.tally

    def computed(self, call: Call, job: Job, result: JobResult) -> None:
        """Note what a request will be answered with when this thread calls `settle`."""
        outputs = tuple([Tensor.of(name, array) for name, array in zip(job.wanted(), result.outputs, strict=True)])
        self._here.computed.append((call, outputs, result))

    def settle(self) -> None:
        """Answer what was computed in this thread."""
        here = self._here
        computed, here.computed = here.computed, []
        tally, now = here.tally, self._clock()
        ended = [(call, outputs) for call, outputs, result in computed if self._end(call, tally, now, result=result)]
        tally.apply()
        for call, outputs in ended:
            response = call.response(outputs)
            call.answer.set_result(response)
            if call.sample is not None:
                self._shadowing.offer(call.sample, response)

    def fail(self, call: Call, error: ServePruneError) -> None:
        """End a request that cannot be answered."""
        tally = self._here.tally
        ended = self._end(call, tally, self._clock(), error=error)
        tally.apply()
        if ended:
            call.answer.set_exception(error.without_frames())

    def leave(self, call: Call) -> None:
        """End a request whose caller has left."""
        tally = self._here.tally
        self._end(call, tally, self._clock())
        tally.apply()

    def _end(
        self,
        call: Call,
        tally: Tally,
        now: float,
        *,
        result: JobResult | None = None,
        error: ServePruneError | None = None,
    ) -> bool:
        """Give back and count; only the first time counts, for its caller may leave while it fails."""
        if not call.finished.acquire(blocking=False):
            return False
        self._admission.leave(call.model.name, call.size_bytes)
        tally.count(self._in_flight[call.model.key], -1)
        side = None
        if call.route is not None:
            call.route.instance.release()
            side = call.route.side
        if call.record is not None:
            _note(call.record, call, now, result)
        series = call.series
        if result is not None:
            tally.observe(series.queue_seconds, result.queue_seconds)
            tally.observe(series.compute_seconds, result.compute_seconds)
        if call.answer.cancelled():
            # Front ends give a request up when its caller leaves and when its time is over.
            late = now >= call.deadline - _TIMER_SLACK_SECONDS
            tally.count(series.answered[Code.DEADLINE_EXCEEDED if late else Code.CANCELLED])
            if side is not None and late:
                side.failed()
            return False
        if side is not None:
            _tell(side, now - call.started, error)
        if error is None:
            tally.observe(series.request_seconds, now - call.started)
        tally.count(series.answered[OK if error is None else error.code])
        return True


def _note(record: RequestRecord, call: Call, now: float, result: JobResult | None) -> None:
    record.admitted, record.settled = call.started, now
    record.model, record.version = call.model.key
    record.tier_requested = call.choice.tier or call.model.default_tier
    record.preprocessing_seconds = call.preprocessing_seconds
    if call.route is not None:
        record.version = call.route.instance.identity[1]
        record.tier, record.tier_reason = call.route.tier, call.route.explanation
    if result is not None:
        record.queue_seconds, record.compute_seconds = result.queue_seconds, result.compute_seconds
        record.batch_rows = result.batch_rows


def _tell(side: Side, seconds: float, error: ServePruneError | None) -> None:
    if error is None:
        side.answered(seconds)
    elif error.code in _FAULTS_OF_THE_SERVER:
        side.failed()
