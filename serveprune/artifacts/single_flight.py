from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serveprune.artifacts.file_lock import FileLock


@contextmanager
def single_flight(path: Path) -> Iterator[None]:
    """Hold the lock file at ``path`` alone among all threads of all processes; waits for its turn.

    The file stays: removing it after every flight would send each waiting thread round once more.
    """
    with FileLock.exclusive(path):
        yield


def remove_idle_locks(folder: Path) -> list[Path]:
    """Remove the files of single flights that nobody is in, and return them."""
    removed = []
    for path in sorted(folder.glob("*.lock")):
        try:
            lock = FileLock.try_exclusive(path)
        except FileNotFoundError:
            continue  # another collector was faster
        if lock is not None:
            lock.discard()
            removed.append(path)
    return removed
