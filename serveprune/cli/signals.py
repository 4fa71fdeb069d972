"""The signals by which an operator, or an orchestrator, speaks to a server."""

import os
import signal
from types import FrameType

_STANDARD_INPUT = 0


class ReloadSignal:
    """Notes SIGHUP, which asks for the config to be read again.

    It comes also when the terminal is closed that the server was started from; then the server is to stop.
    """

    def __init__(self) -> None:
        self._received = self._is_closed = False
        self._has_terminal = os.isatty(_STANDARD_INPUT)
        signal.signal(signal.SIGHUP, self._on_signal)

    def take(self) -> bool:
        """Tell whether the signal has come since the last call."""
        received, self._received = self._received, False
        return received

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._has_terminal and not os.isatty(_STANDARD_INPUT):
            # Both the shell and the kernel send it, and a second SIGTERM would end the server at once.
            if not self._is_closed:
                self._is_closed = True
                signal.raise_signal(signal.SIGTERM)
        else:
            self._received = True


class StopSignals:
    """Notes SIGTERM and SIGINT; a second one ends the process at once."""

    def __init__(self, *, second_ends: bool = True) -> None:
        """Begin to take note.

        Args:
            second_ends: Not in one of several serving processes: whoever ends a whole group (systemd, by default)
                signals it as its supervisor does, and it has requests to answer.
        """
        self._second_ends = second_ends
        # A plain flag: a handler runs in the very thread that waits, and would wait for ever for the lock of an
        # Event that this thread holds at that moment.
        self.received = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received and self._second_ends:
            # Not SystemExit: the interpreter would wait for the threads that are still answering. Builds end with
            # their parent, and the kernel releases the leases.
            os._exit(128 + number)
        self.received = True
