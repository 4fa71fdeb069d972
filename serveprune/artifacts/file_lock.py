import errno
import fcntl
import os
from pathlib import Path
from typing import Self

_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


class FileLock:
    """An flock that is held, until `release` or the end of the process.

    Every lock opens its file anew, and an flock belongs to the open file: so it excludes other threads as well
    as other processes, and the kernel drops it when its holder is killed. Not re-entrant.
    """

    __slots__ = ("_descriptor", "path")

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    @classmethod
    def exclusive(cls, path: Path) -> Self:
        """Wait until nobody else holds the lock; creates the file.

        Raises:
            OSError: The file cannot be created.
        """
        lock = cls._take(path, create=True, operation=fcntl.LOCK_EX)
        assert lock is not None  # a blocking flock ends in possession or in an exception
        return lock

    @classmethod
    def try_exclusive(cls, path: Path, *, create: bool = False) -> Self | None:
        """Take the lock if nobody else holds it, shared or exclusive; do not wait.

        Args:
            path: Of the lock's file.
            create: Whether the file is made if there is none.

        Raises:
            OSError: There is no such file, or it cannot be made.
        """
        return cls._take(path, create=create, operation=fcntl.LOCK_EX | fcntl.LOCK_NB)

    @classmethod
    def shared(cls, path: Path) -> Self:
        """Wait until nobody holds the lock of an existing file exclusively, and hold it with others.

        Raises:
            OSError: There is no such file, or the exclusive holder removed it.
        """
        lock = cls._take(path, create=False, operation=fcntl.LOCK_SH)
        assert lock is not None
        return lock

    @classmethod
    def _take(cls, path: Path, *, create: bool, operation: int) -> Self | None:
        while True:
            descriptor = _open(path, create=create)
            try:
                fcntl.flock(descriptor, operation)
                current = _is_at(path, descriptor)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise
            if current:
                return cls(path, descriptor)
            # The previous holder removed the file while we waited: this lock excludes nobody any more.
            os.close(descriptor)

    def release(self) -> None:
        """Let go of the lock; a second time does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            # Closing alone would leave it locked while a child process, just forked, still has a copy.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def discard(self) -> None:
        """Remove the lock's file and let go; waiting lockers notice and make a new one."""
        self.path.unlink(missing_ok=True)
        self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _open(path: Path, *, create: bool) -> int:
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        # NFS grants exclusive locks only on files opened for writing.
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
