"""The command ``serveprune``."""

import os
import signal
import sys

_FIRST_PROCESS = 1


def main() -> None:
    """Run the command line; a probe, which comes every few seconds, without what other commands import."""
    if os.getpid() == _FIRST_PROCESS:
        # Of the first process of a container the kernel keeps every signal that it has no handler for, SIGTERM too:
        # without one a container that is stopped while it still imports, or in a command without a handler of its
        # own, is waited for and then killed.
        signal.signal(signal.SIGTERM, lambda number, _frame: os._exit(128 + number))
    if sys.argv[1:2] == ["health"]:
        from serveprune.cli.health import main as run
    else:
        from serveprune.cli.app import main as run
    run()


if __name__ == "__main__":
    main()
