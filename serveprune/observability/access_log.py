import logging
from collections.abc import Callable
from typing import Any

from serveprune.errors import Code
from serveprune.observability.request_record import OK, RequestRecord

ACCESS_LOGGER = "serveprune.access"

_log = logging.getLogger(ACCESS_LOGGER)

_FAULTS_OF_THE_SERVER = frozenset((Code.INTERNAL, Code.DATA_LOSS))
_DIGITS = 6


class AccessLog:
    """Lines for requests: a sample, the slow ones, and those that failed. Thread-safe.

    Args:
        sample_ratio: Share of all requests.
        slow_seconds: Those that took as long have a line in any case.
        errors: So do those that failed.
        trace_ids: The trace and the span of a record, if it has any.
    """

    def __init__(
        self,
        *,
        sample_ratio: float,
        slow_seconds: float | None,
        errors: bool,
        trace_ids: Callable[[RequestRecord], tuple[str, str] | None] = lambda record: None,
    ) -> None:
        self._sample_ratio = sample_ratio
        self._slow_seconds = slow_seconds
        self._errors = errors
        self._trace_ids = trace_ids

    def samples(self, chance: float) -> bool:
        """Tell whether a request belongs to the sample, given a number from 0 to 1, 1 excluded."""
        return chance < self._sample_ratio

    def wants(self, record: RequestRecord) -> bool:
        """Tell whether a request that has ended gets a line."""
        seconds = record.total_seconds
        return (
            record.is_sampled
            or (self._errors and record.code != OK)
            or (self._slow_seconds is not None and seconds is not None and seconds >= self._slow_seconds)
        )

    def write(self, record: RequestRecord) -> None:
        """Write the line of a request that has ended, if it gets one."""
        if not self.wants(record):
            return
        fields = fields_of(record)
        ids = self._trace_ids(record)
        if ids is not None:
            fields["trace_id"], fields["span_id"] = ids
        _log.log(_level(record.code), "request", extra={"fields": fields})


def fields_of(record: RequestRecord) -> dict[str, Any]:
    """Return what a line says of a request; what is not known of it is left out."""
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "protocol": record.protocol,
        "model": record.model or None,
        "version": record.version or None,
        "tier_requested": record.tier_requested or None,
        "tier": record.tier or None,
        "tier_reason": record.tier_reason or None,
        "code": record.code,
        "http_status": record.status,
        "preprocessing_seconds": _rounded(record.preprocessing_seconds),
        "queue_seconds": _rounded(record.queue_seconds),
        "compute_seconds": _rounded(record.compute_seconds),
        "total_seconds": _rounded(record.total_seconds),
        "batch_rows": record.batch_rows,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "error": record.error or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _level(code: str) -> int:
    if code == OK:
        return logging.INFO
    return logging.ERROR if code in _FAULTS_OF_THE_SERVER else logging.WARNING


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, _DIGITS)
