import logging
import threading
import time
from collections.abc import Callable

from serveprune.errors import ServePruneError
from serveprune.observability.audit_log import AuditEvent, AuditLog

_log = logging.getLogger(__name__)

_MOST = 30
_WITHIN_SECONDS = 60.0
_MAX_ASKED_CHARACTERS = 200


class Refusals:
    """Notes who asked without a token that counts. Thread-safe.

    After so many a minute the others are only counted, and the next line says how many they were: whoever may not ask
    shall not fill the disk either.
    """

    def __init__(self, audit: AuditLog, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._audit = audit
        self._clock = clock
        self._lock = threading.Lock()
        self._begun = clock()
        self._noted = self._unnoted = 0

    def note(self, error: ServePruneError, *, protocol: str, peer: str, asked: str) -> None:
        """Take note of a refused call.

        Args:
            error: Why it was refused; does not quote what was shown.
            protocol: ``http`` or ``grpc``.
            peer: From where.
            asked: For what, in the caller's words.
        """
        with self._lock:
            now = self._clock()
            if now - self._begun >= _WITHIN_SECONDS:
                self._begun, self._noted = now, 0
            if self._noted >= _MOST:
                self._unnoted += 1
                return
            self._noted += 1
            unnoted, self._unnoted = self._unnoted, 0
        asked = asked[:_MAX_ASKED_CHARACTERS]
        fields = {
            "protocol": protocol,
            "asked": asked,
            "peer": peer,
            "code": str(error.code),
            "message": error.message,
            "unnoted_before": unnoted,
        }
        self._audit.add(AuditEvent.REFUSAL, fields)
        _log.warning("admin: refused %r from %s: %s", asked, peer, error.message)
