from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Span

OK = "OK"

_MAX_ERROR_CHARACTERS = 500
_MAX_NAME_CHARACTERS = 256


@dataclass(slots=True, eq=False)
class RequestRecord:
    """What is noted of one request while it is answered, where traces or an access log are wanted.

    Front ends note how it begins and ends, the data plane what lies between. Moments are on ``time.monotonic()``.

    Attributes:
        protocol: ``http`` or ``grpc``.
        request_id: That the caller gave it, or one that was made.
        method: As traces call it: the path of HTTP with its variable parts in braces, or the method of gRPC.
        scheme: Of HTTP.
        received: When its head was there; as nanoseconds since the epoch too.
        span: Of the trace; ``None`` without traces.
        trace_response: What the caller is told of the span.
        is_traced: Whether its span goes to the collector.
        is_sampled: Whether the access log has a line for it in any case.
        model: Name that it asks for; with the version once it is known which one answers.
        tier_requested: Name of the tier, the model's default where none is asked for.
        code: How it ended; ``OK``, or that of an error.
        status: Of HTTP.
        settled: When its answer was computed, or it was clear that there is none.
        batch_rows: Rows that were computed together with its own, those among them.
    """

    protocol: str
    request_id: str | None
    method: str
    received: float
    received_ns: int
    scheme: str = "http"
    span: "Span | None" = None
    trace_response: str | None = None
    is_traced: bool = False
    is_sampled: bool = False
    model: str = ""
    version: str = ""
    tier_requested: str = ""
    tier: str = ""
    tier_reason: str = ""
    code: str = OK
    error: str = ""
    status: int | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    admitted: float | None = None
    settled: float | None = None
    ended: float | None = None
    preprocessing_seconds: float | None = None
    queue_seconds: float | None = None
    compute_seconds: float | None = None
    batch_rows: int | None = None

    def asks_for(self, model: str, version: str | None) -> None:
        """Note what its caller calls the model, which may be anything."""
        self.model, self.version = model[:_MAX_NAME_CHARACTERS], (version or "")[:_MAX_NAME_CHARACTERS]

    def failed(self, code: str, message: str) -> None:
        """Note why it cannot be answered, unless it has ended."""
        if self.ended is None:
            self.code, self.error = code, message[:_MAX_ERROR_CHARACTERS]

    @property
    def total_seconds(self) -> float | None:
        """From its head to its answer."""
        return None if self.ended is None else self.ended - self.received

    def ns_of(self, moment: float) -> int:
        """Return a moment in nanoseconds since the epoch."""
        return self.received_ns + round((moment - self.received) * 1e9)
