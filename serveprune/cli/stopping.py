import logging
import os
import sys
from typing import Protocol

_log = logging.getLogger(__name__)


class Stoppable(Protocol):
    """What `leave` stops."""

    def stop(self) -> bool:
        """Drain, and return whether nothing runs any more."""
        ...


def leave(server: Stoppable, *, exit_code: int) -> int:
    """Stop a server and return the exit code, or end the process if something still runs."""
    if not server.stop():
        _log.warning("a batch is still being computed after server.drain_seconds; it is abandoned")
        sys.stdout.flush()
        sys.stderr.flush()
        # An ordinary exit would take the interpreter away from under ONNX Runtime's threads, and abort.
        os._exit(exit_code)
    return exit_code
