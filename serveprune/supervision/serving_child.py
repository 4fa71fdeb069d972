"""One serving process as its supervisor sees it."""

import contextlib
import math
import os
import signal
import socket
import subprocess
from collections.abc import Sequence

from serveprune.supervision.messages import Channel, Listening, Spread, Standing, Told

_SEND_SECONDS = 5.0
"""A process that reads nothing for so long is not worth keeping."""


class ServingChild:
    """A process, the channel to it, and what it said last.

    Attributes:
        name: Which one of the serving processes this is; its successor has the same.
        listening: What it said when its ports were open.
        standing: What it said last of its tiers.
        may_listen: It was told to open its ports.
        spread: What it was told last of each canary.
        told: What it was told last of what its page shows.
        answers_since: When it could first answer for every model; ``None`` before.
        is_hindered: It said that something beside it has to be mended before it can start.
        kill_at: When it is to have ended by itself, on ``time.monotonic()``.
    """

    def __init__(self, command: Sequence[str], *, name: str) -> None:
        """Start the process: a fresh interpreter, for a fork of a process with threads is a lottery.

        Args:
            command: What to run; it is given the descriptor of its end of the channel, and this process's id.
            name: Which one this is.
        """
        here, there = socket.socketpair()
        with there:
            self._process = subprocess.Popen(
                [*command, str(there.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[there.fileno()],
                # Ctrl-C in a terminal goes to the group; the supervisor decides what it means for its processes.
                start_new_session=True,
            )
        here.settimeout(_SEND_SECONDS)
        self.channel = Channel(here)
        self.name = name
        self.listening: Listening | None = None
        self.standing: Standing | None = None
        self.may_listen = False
        self.answers_since: float | None = None
        self.is_hindered = False
        self.kill_at = math.inf
        self.spread: dict[str, Spread] = {}
        self.told: Told | None = None
        self.exit_code: int | None = None
        self.cpu_seconds = 0.0
        try:
            self.pidfd = os.pidfd_open(self._process.pid)
        except OSError:
            # Nobody would own it.
            self._process.kill()
            self._process.wait()
            here.close()
            raise

    @property
    def pid(self) -> int:
        """Process id; it stays this process's own until `reap` has returned True."""
        return self._process.pid

    def reap(self) -> bool:
        """Return whether the process has ended; then its exit code and what it had used are known."""
        if self.exit_code is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid == 0:
                return False
            # Popen is not to wait for it again, nor to warn that nobody did.
            self.exit_code = self._process.returncode = os.waitstatus_to_exitcode(status)
            self.cpu_seconds = usage.ru_utime + usage.ru_stime
        return True

    def close(self) -> None:
        """Close both descriptors of a process that has ended."""
        self.channel.close()
        os.close(self.pidfd)

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the process, if it has not ended."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def describe_end(self) -> str:
        """Say how the process ended."""
        if self.exit_code is not None and self.exit_code < 0:
            known = -self.exit_code in set(signal.Signals)
            return f"was killed by {signal.Signals(-self.exit_code).name if known else -self.exit_code}"
        return f"ended with status {self.exit_code}"
