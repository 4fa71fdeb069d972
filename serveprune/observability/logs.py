import logging
import sys
import time


def configure_logs(*, verbose: bool = False, process: str = "") -> None:
    """Send serveprune's log lines to standard error, one line each, UTC timestamps.

    Args:
        verbose: Show what only developers want to see.
        process: Which of several serving processes this is; stands in each line.
    """
    place = f" [process {process}]" if process else ""
    formatter = logging.Formatter(
        f"%(asctime)s.%(msecs)03dZ %(levelname)s{place} %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger("serveprune")
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    root.propagate = False
