"""Who changed what, and who tried to: one file of JSON lines, which only grows."""

import json
import logging
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

AUDIT_FILE = "audit.jsonl"
"""Its name, in the folder of the store."""


class AuditEvent(StrEnum):
    """What a line is about."""

    ROLLOUT = "rollout"
    """Something happened to a rollout, by an operator's word or by itself."""
    REQUEST = "request"
    """An operator asked for a change, by the admin API, and got it or not."""
    REFUSAL = "refusal"
    """Somebody asked the admin API without a token that counts."""


def _now() -> datetime:
    return datetime.now(UTC)


class AuditLog:
    """Appends lines. Thread-safe; several processes may append to the same file."""

    def __init__(self, file: Path, *, now: Callable[[], datetime] = _now) -> None:
        """Name the file; it is made with the first line.

        Args:
            file: Its folder is made as well.
            now: The time that lines get.
        """
        self._file = file
        self._now = now
        self._lock = threading.Lock()

    def add(self, event: AuditEvent, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Append a line, and return it; one that cannot be written goes to the server's log.

        Args:
            event: What it is about.
            fields: Ready for JSON; no secrets.
        """
        line = {"time": self._now().isoformat(timespec="milliseconds"), "event": str(event), **fields}
        text = json.dumps(line)
        try:
            with self._lock:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                # One write of one line: lines of other processes come before or after it.
                with self._file.open("ab", buffering=0) as file:
                    file.write(text.encode() + b"\n")
        except OSError as error:
            _log.error("the audit log cannot be written: %s; lost: %s", error.strerror, text)
        return line
