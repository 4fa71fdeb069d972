from typing import Self

from serveprune.artifacts.file_lock import FileLock


class Lease:
    """Keeps an artifact from being evicted, by any process, until it is released.

    Any number of leases, here and in other processes, may exist for one artifact. The lock is on the
    artifact's own manifest, so leasing writes nothing: it works on a full disk and in a read-only store.
    Use it as a context manager, or call `release`; the end of the process releases it too.
    """

    __slots__ = ("_lock", "key")

    def __init__(self, key: str, lock: FileLock) -> None:
        self.key = key
        self._lock = lock

    def release(self) -> None:
        """Let the artifact be evicted again; a second time does nothing."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
