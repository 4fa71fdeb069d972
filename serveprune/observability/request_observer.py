import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable

from serveprune.observability.access_log import AccessLog
from serveprune.observability.request_id import REQUEST_ID, accepted_id, new_id
from serveprune.observability.request_record import RequestRecord
from serveprune.observability.tracing_protocol import Tracing

_log = logging.getLogger(__name__)

_MAX_WAITING = 4096
_TELL_SECONDS = 60.0

_TRACE_PARENT = "traceparent"
_TRACE_STATE = "tracestate"
_WANTED = (_TRACE_PARENT, _TRACE_STATE, REQUEST_ID)
_KNOWN: dict[bytes | str, str] = {form: name for name in _WANTED for form in (name, name.encode())}


class RequestObserver:
    """Follows requests for traces and the access log; a server that wants neither has none. Thread-safe.

    What costs time, spans and lines, is made in a thread of its own after the answer was sent, which hears of no
    request that gets neither. If that cannot keep up, requests are left out.

    Args:
        tracing: Makes spans.
        access: Writes lines.
        chance: From 0 to 1, for samples.
    """

    def __init__(
        self,
        *,
        tracing: Tracing | None,
        access: AccessLog | None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._tracing = tracing
        self._access = access
        self._chance = chance
        self._ended: queue.Queue[RequestRecord | None] = queue.Queue(_MAX_WAITING)
        self._left_out = 0
        self._told = -_TELL_SECONDS
        self._thread = threading.Thread(target=self._report, name="request-observer", daemon=True)
        self._thread.start()

    def begin(
        self,
        protocol: str,
        method: str,
        headers: Iterable[tuple[bytes | str, bytes | str]],
        *,
        scheme: str = "http",
    ) -> RequestRecord:
        """Return the record of a request whose headers, or metadata, are there; names are lower-case."""
        found: dict[str, str] = {}
        for name, value in headers:
            known = _KNOWN.get(name)
            if known is not None:
                text = value.decode("latin-1") if isinstance(value, bytes) else value
                # So that two of them are, as W3C has it: no context at all, or one list.
                found[known] = f"{found[known]},{text}" if known in found else text
        request_id = accepted_id(found.get(REQUEST_ID))
        record = RequestRecord(protocol, request_id, method, time.monotonic(), time.time_ns(), scheme)
        if self._tracing is not None:
            self._tracing.begin(record, {name: found[name] for name in (_TRACE_PARENT, _TRACE_STATE) if name in found})
        record.is_sampled = self._access is not None and self._access.samples(self._chance())
        return record

    def asked(self, record: RequestRecord, *, model: str, version: str | None, id: str | None) -> None:
        """Note what a request asks for, once it is decoded."""
        record.asks_for(model, version)
        if record.request_id is None:
            record.request_id = accepted_id(id)

    def answer_headers(self, record: RequestRecord) -> tuple[tuple[str, str], ...]:
        """Return what an answer's headers, or trailing metadata, say of its request."""
        if record.request_id is None:
            record.request_id = new_id()
        own = (REQUEST_ID, record.request_id)
        return (own,) if record.trace_response is None else (own, ("traceresponse", record.trace_response))

    def end(self, record: RequestRecord) -> None:
        """Take a request whose answer is on its way, or that nobody waits for any more; only once counts."""
        if record.ended is not None:
            return
        record.ended = time.monotonic()
        if not (record.is_traced or (self._access is not None and self._access.wants(record))):
            return
        try:
            self._ended.put_nowait(record)
        except queue.Full:
            self._left_out += 1

    def stop(self, *, timeout_seconds: float) -> None:
        """Report what has ended, for so long at the most; idempotent."""
        deadline = time.monotonic() + timeout_seconds
        try:
            self._ended.put(None, timeout=timeout_seconds)
        except queue.Full:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _report(self) -> None:
        while (record := self._ended.get()) is not None:
            try:
                if record.request_id is None:
                    record.request_id = new_id()
                if self._tracing is not None and record.is_traced:
                    self._tracing.end(record)
                if self._access is not None:
                    self._access.write(record)
                self._tell_left_out()
            except Exception:  # the next one must be reported
                _log.exception("a request could not be reported")

    def _tell_left_out(self) -> None:
        now = time.monotonic()
        if self._left_out and now - self._told >= _TELL_SECONDS:
            self._told, left_out = now, self._left_out
            self._left_out -= left_out
            _log.warning("%d requests are in no trace and no access log: more ended than could be reported", left_out)
