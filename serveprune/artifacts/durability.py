"""Bytes that survive a power cut, and a full disk told in words."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serveprune.errors import ResourceExhausted

# EDQUOT is a full quota; EFBIG a file beyond the process's or the file system's largest.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


_PROBE_BYTES = 2**20


def write_file(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def require_room(folder: Path) -> None:
    """Write a little into a folder and remove it again, to find out whether the disk is full.

    Libraries in C++ report a full disk as something else, or not at all.

    Raises:
        OSError: It is, as the system puts it.
    """
    probe = folder / ".room"
    try:
        write_file(probe, bytes(_PROBE_BYTES))
    finally:
        probe.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Wait until every file and folder from ``folder`` down is on the disk, names included."""

    def fail(error: OSError) -> None:
        raise error  # os.walk would leave out what it cannot list

    for parent, _, files in os.walk(folder, topdown=False, onerror=fail):
        for name in files:
            _sync(Path(parent, name))
        _sync(Path(parent))


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    _sync(folder)


def size_on_disk_bytes(path: Path) -> int:
    """Return the bytes of all files at or below a path; what vanishes meanwhile counts nothing."""
    total = 0
    for parent, _, files in os.walk(path) if path.is_dir() else ((str(path.parent), [], [path.name]),):
        for name in files:
            try:
                total += Path(parent, name).lstat().st_size
            except FileNotFoundError:
                continue
    return total


@contextmanager
def full_disk_reported(root: Path, *, folder: Path, doing: str) -> Iterator[None]:
    """Turn an OSError that says the disk is full into one that says what to do about it.

    Args:
        root: The store, for the message.
        folder: What is being written; its size is the least that was needed.
        doing: What was being done, for the message.

    Raises:
        ResourceExhausted: The disk, the quota or the largest file size is used up.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(next(one for one in (root, *root.parents) if one.exists())).free
        raise ResourceExhausted(
            f"{doing}: expected room for more than {size_on_disk_bytes(folder)} bytes in {root}, but the system "
            f"says {os.strerror(error.errno)!r} with {free} bytes free; nothing was stored. Free some disk, or "
            "lower store.max_bytes and run `serveprune cache gc`"
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
