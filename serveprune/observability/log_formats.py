"""Lines of the log: text for people, JSON for what collects them."""

import logging
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson

TraceIds = Callable[[], tuple[str, str] | None]
"""Trace and span that the calling thread is within, if any, in hexadecimal digits."""

_MAX_MESSAGE_CHARACTERS = 8192
_MAX_TRACEBACK_CHARACTERS = 16384
_PLAIN = re.compile(r"[^\s\"=\\\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_BREAKS = re.compile(r"[\x7f-\x9f\u2028\u2029]")
"""What JSON leaves as it is, and some readers take for the end of a line."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class JsonLines(logging.Formatter):
    """One JSON object a line, whatever the message holds.

    Args:
        process: Which of several serving processes this is.
        trace_ids: See `TraceIds`.
    """

    def __init__(self, *, process: str, trace_ids: TraceIds) -> None:
        super().__init__()
        self._process = process
        self._trace_ids = trace_ids

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": _cut(record.getMessage(), _MAX_MESSAGE_CHARACTERS),
            "pid": record.process,
        }
        if self._process:
            line["process"] = self._process
        ids = self._trace_ids()
        if ids is not None:
            line["trace_id"], line["span_id"] = ids
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0] is not None:
            kind, error, _ = record.exc_info
            line["exception"] = {
                "type": kind.__name__,
                "message": _cut(str(error), _MAX_MESSAGE_CHARACTERS),
                "traceback": _cut(self.formatException(record.exc_info), _MAX_TRACEBACK_CHARACTERS),
            }
        written = orjson.dumps(_encodable(line), default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        return _BREAKS.sub(lambda found: f"\\u{ord(found[0]):04x}", written)


class TextLines(logging.Formatter):
    """One line each but for tracebacks; times are UTC.

    Args:
        process: Which of several serving processes this is.
    """

    def __init__(self, *, process: str) -> None:
        place = f" [process {process}]" if process else ""
        super().__init__(f"%(asctime)s.%(msecs)03dZ %(levelname)s{place} %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Return the line without its traceback; nothing in it begins another one."""
        record.message = _cut(record.message, _MAX_MESSAGE_CHARACTERS)
        words = [super().formatMessage(record)]
        words += [f"{name}={_readable(value)}" for name, value in getattr(record, "fields", {}).items()]
        return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", " ".join(words))


def _readable(value: Any) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else orjson.dumps(_encodable(text)).decode()


def _encodable(value: Any) -> Any:
    """Return a value without halves of characters, which UTF-8 cannot say."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {name: _encodable(each) for name, each in value.items()}
    return value


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} ... ({len(text)} characters)"
