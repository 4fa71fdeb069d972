from serveprune.config.observability import AccessLogConfig
from serveprune.errors import Code, ServePruneError
from serveprune.observability.access_log import AccessLog
from serveprune.observability.request_observer import RequestObserver
from serveprune.observability.request_record import RequestRecord
from serveprune.observability.tracing_protocol import Tracing
from serveprune.oip.messages import InferenceRequest


class ObservedRequest:
    """A request whose course is recorded, as its front end sees it.

    Attributes:
        record: Is handed to the data plane with the request.
    """

    __slots__ = ("_observer", "record")

    def __init__(self, observer: RequestObserver, record: RequestRecord) -> None:
        self._observer = observer
        self.record = record

    def asked(self, request: InferenceRequest, *, size_bytes: int) -> None:
        """Note what it asks for, now that it is decoded."""
        self.record.bytes_in = size_bytes
        self._observer.asked(self.record, model=request.model, version=request.version, id=request.id)

    def failed(self, error: ServePruneError) -> None:
        """Note why it cannot be answered; the answer that says so comes next."""
        self.record.failed(error.code, error.message)

    def left(self) -> None:
        """Note that nobody waits for the answer any more."""
        self.record.failed(Code.CANCELLED, "the caller left before the request was answered")
        self._observer.end(self.record)

    def answered(self, *, size_bytes: int, status: int | None = None) -> tuple[tuple[str, str], ...]:
        """Note that its answer goes out; return what that one's headers, or trailing metadata, are to say of it."""
        record = self.record
        if record.ended is None:
            record.bytes_out, record.status = size_bytes, status
        headers = self._observer.answer_headers(record)
        self._observer.end(record)
        return headers


def request_observer(access: AccessLogConfig | None, tracing: Tracing | None) -> RequestObserver | None:
    """Return what follows requests, if anybody wants to know of them."""
    log = None
    if access is not None:
        log = AccessLog(
            sample_ratio=access.sample_ratio,
            slow_seconds=access.slow_seconds,
            errors=access.errors,
            trace_ids=(lambda record: None) if tracing is None else tracing.ids_of,
        )
    return RequestObserver(tracing=tracing, access=log) if tracing is not None or log is not None else None
