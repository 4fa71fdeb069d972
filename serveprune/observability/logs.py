import logging
import sys
import time
from collections.abc import Callable
from typing import TextIO

from serveprune.observability.access_log import ACCESS_LOGGER
from serveprune.observability.line_budget import LineBudget
from serveprune.observability.log_formats import JsonLines, TextLines, TraceIds

OWN_LOGGER = "serveprune"

_EXPORTERS = "opentelemetry"
_REPEAT_SECONDS = 60.0
_LINES_PER_SECOND = 100


def configure_logs(
    *,
    format: str = "text",
    level: str = "info",
    process: str = "",
    max_lines_per_second: int = _LINES_PER_SECOND,
    trace_ids: TraceIds = lambda: None,
) -> None:
    """Send log lines to standard error, those of libraries from warnings on, in the place of what was configured.

    Args:
        format: ``text`` or ``json``.
        level: Lines below it are left out.
        process: Which of several serving processes this is; stands in each line.
        max_lines_per_second: Of requests, and of all else; see `BoundedLines`.
        trace_ids: See `TraceIds`.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    handler = BoundedLines(sys.stderr, lines_per_second=max_lines_per_second)
    handler.setFormatter(
        JsonLines(process=process, trace_ids=trace_ids) if format == "json" else TextLines(process=process)
    )
    root, own = logging.getLogger(), logging.getLogger(OWN_LOGGER)
    for logger in (root, own):
        for other in [each for each in logger.handlers if isinstance(each, BoundedLines)]:
            logger.removeHandler(other)
    # Each line once, whoever else listens at the root.
    own.propagate = False
    own.addHandler(handler)
    own.setLevel(threshold)
    root.addHandler(handler)
    root.setLevel(max(threshold, logging.WARNING))
    logging.captureWarnings(True)


class BoundedLines(logging.StreamHandler[TextIO]):
    """Writes lines, but no more than a disk bears, and says how many it left out.

    Lines for requests have a budget of their own, so that a storm of them hides nothing else. What exporters say of a
    collector that cannot be reached, batch after batch, is written once a minute.

    Args:
        stream: Where they go.
        lines_per_second: On average, of either kind.
        clock: Monotonic seconds.
    """

    def __init__(self, stream: TextIO, *, lines_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._of_requests = LineBudget(lines_per_second, now=clock())
        self._of_others = LineBudget(lines_per_second, now=clock())
        self._written: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, if it may be written."""
        now = self._clock()
        if record.name.partition(".")[0] == _EXPORTERS and not self._is_news(record, now):
            return
        budget = self._of_requests if record.name == ACCESS_LOGGER else self._of_others
        left_out = budget.left_out
        if not budget.take(now):
            return
        if left_out:
            budget.left_out = 0
            super().emit(_note_of(left_out, record.name))
        super().emit(record)

    def _is_news(self, record: logging.LogRecord, now: float) -> bool:
        # By logger and level, of which there are few; the message tells how many tries there were.
        key = f"{record.name} {record.levelname}"
        if now - self._written.get(key, -_REPEAT_SECONDS) < _REPEAT_SECONDS:
            return False
        self._written[key] = now
        return True


def _note_of(left_out: int, name: str) -> logging.LogRecord:
    what = "lines for requests" if name == ACCESS_LOGGER else "lines"
    message = "%d %s were left out (server.logs.max_lines_per_second)"
    return logging.LogRecord(OWN_LOGGER, logging.WARNING, __file__, 0, message, (left_out, what), None)
