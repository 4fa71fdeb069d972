from pathlib import Path
from typing import NamedTuple


class _Signature(NamedTuple):
    device: int
    inode: int
    changed_ns: int
    size_bytes: int


class ConfigFile:
    """Tells when the file has changed since it was read last, whatever changed it.

    Editors write another file in its place, and Kubernetes turns a symlink on the way to it to another folder. What is
    looked at is what the path leads to at the moment. A file is taken to be written when it stays as it is from one
    look to the next. For one thread.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = self._seen = self._signature()

    def has_changed(self) -> bool:
        """Tell whether the file is another one than was read last, and no longer being written. To be called often."""
        now = self._signature()
        is_written, self._seen = now == self._seen, now
        return is_written and now != self._read

    def mark_read(self) -> None:
        """Note that the file is about to be read."""
        self._read = self._seen = self._signature()

    def _signature(self) -> _Signature | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return _Signature(found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
