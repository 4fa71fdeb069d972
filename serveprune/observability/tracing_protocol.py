from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from serveprune.observability.request_record import RequestRecord

_PATIENCE_SECONDS = 5.0

Attributes = Mapping[str, str | bool | int | float]


class OpenSpan(Protocol):
    """A span that has not ended."""

    def note(self, attributes: Attributes) -> None:
        """Say more of what is done."""
        ...

    def stage(self, name: str, *, begun_ns: int, ended_ns: int, failure: str | None = None) -> None:
        """Have a part of it that is over be a span below it; moments are nanoseconds since the epoch.

        Args:
            name: Of the part.
            begun_ns: When it began.
            ended_ns: When it ended.
            failure: Why it went wrong, if it did.
        """
        ...

    def failed(self, reason: str) -> None:
        """Say that it went wrong."""
        ...


class Tracing(Protocol):
    """Makes spans and has them exported. Thread-safe. `tracing.OpenTelemetry` does so.

    Nobody who is given one needs its packages to be installed.
    """

    def begin(self, record: RequestRecord, carrier: Mapping[str, str]) -> None:
        """Begin the span of a request, below that of its caller if ``traceparent`` names one."""
        ...

    def end(self, record: RequestRecord) -> None:
        """End the span of a request that is traced, with the stages that it went through below it."""
        ...

    def span(self, name: str, attributes: Attributes) -> AbstractContextManager[OpenSpan]:
        """Have what is done within the context be a span; lines that are logged meanwhile name it."""
        ...

    def ids_of(self, record: RequestRecord) -> tuple[str, str] | None:
        """Return the trace and the span of a request."""
        ...

    def current_ids(self) -> tuple[str, str] | None:
        """Return the trace and the span that the calling thread is within, if any."""
        ...

    def close(self, *, timeout_seconds: float) -> None:
        """Export what has ended, for so long at the most; idempotent."""
        ...


def close_in_time(tracing: Tracing | None, *, left_seconds: float) -> None:
    """Have the last spans exported within what is left of a drain, and a few seconds at the most."""
    if tracing is not None:
        tracing.close(timeout_seconds=min(left_seconds, _PATIENCE_SECONDS))
