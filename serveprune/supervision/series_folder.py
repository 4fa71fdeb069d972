"""A folder for the values of series, gone when the server is: they begin at zero with each start."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "serveprune-series-"
_OWNER_FILE = "owner.lock"
_MEMORY = Path("/dev/shm")


@contextmanager
def series_folder() -> Iterator[Path]:
    """Make a folder for one server, and remove it at the end; also remove those of servers that were killed."""
    # In memory if possible: values change with every request, and a disk would be busy writing them.
    place = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    remove_abandoned(place)
    # Under another name until it is locked, so that nobody takes it for one that was left behind.
    unlocked = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=place))
    folder = place / unlocked.name.removeprefix(".")
    try:
        with (unlocked / _OWNER_FILE).open("wb") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            unlocked.rename(folder)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(place: Path) -> None:
    """Remove the folders of this user's servers that run no more: nobody holds their lock."""
    for folder in place.glob(f"{_PREFIX}*"):
        try:
            if folder.lstat().st_uid != os.getuid():
                continue
            with (folder / _OWNER_FILE).open("rb") as owner:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # in use, made just now, or gone
