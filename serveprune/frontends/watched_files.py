"""What is made of files, and made anew while the server runs when they change."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from serveprune.errors import FailedPrecondition, ServePruneError

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_MAX_FILE_BYTES = 2**20

Contents = Mapping[Path, bytes]
Made = TypeVar("Made")


class Reload(StrEnum):
    """What became of files that changed."""

    TAKEN = "taken"
    REFUSED = "refused"


OnReload = Callable[[str, Reload], None]
"""Told what was reloaded, and how that ended."""


class WatchedFiles(Generic[Made]):
    """A value made of the contents of files. Any thread may read it; one looks for changes.

    Files are read whole at each look: they are small, and neither their times nor their sizes tell every change.
    Content that cannot be used leaves the value as it is. It is reported when it is there at two looks in a row, for
    two files that belong together are seldom written at once.

    Attributes:
        current: The value; replaced as a whole, never changed.
    """

    def __init__(self, files: Mapping[Path, str], make: Callable[[Contents], Made], *, name: str) -> None:
        """Read the files for the first time.

        Args:
            files: What to watch, and the setting that names each; none, if the value never changes.
            make: Makes the value, or raises `ServePruneError` if these contents are of no use.
            name: What the value is, for logs and metrics.

        Raises:
            ServePruneError: A file cannot be read, or the value cannot be made.
        """
        self._files = files
        self._make = make
        self._name = name
        self._taken = read_files(files)
        self.current = make(self._taken)
        self._doubtful: object = None
        self._reported: object = None

    def look(self, on_reload: OnReload) -> None:
        """Take up what has changed, if it can be used."""
        seen: object
        try:
            contents = read_files(self._files)
            if contents == self._taken:
                self._doubtful = self._reported = None
                return
            seen = contents
            made = self._make(contents)
        except ServePruneError as error:
            if isinstance(error, _Unreadable):
                seen = error.message
            self._doubt(seen, error, on_reload)
            return
        self._taken, self.current = contents, made
        self._doubtful = self._reported = None
        _log.info("%s changed on disk; new connections and requests get the new one", self._name)
        on_reload(self._name, Reload.TAKEN)

    def _doubt(self, seen: object, error: ServePruneError, on_reload: OnReload) -> None:
        if seen == self._reported:
            return
        if seen != self._doubtful:
            self._doubtful = seen
            return
        self._reported = seen
        _log.error("%s changed on disk and cannot be used; the old one stays: %s", self._name, error.message)
        on_reload(self._name, Reload.REFUSED)


class Watched(Protocol):
    """What a `Watch` looks after."""

    def look(self, on_reload: OnReload) -> None:
        """Take up what has changed."""
        ...


class Watch:
    """Looks after watched files, about once a second, in a thread of its own."""

    def __init__(self, watched: Sequence[Watched], *, on_reload: OnReload) -> None:
        self._watched = watched
        self._on_reload = on_reload
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to look, if there is something to look after."""
        if self._watched:
            threading.Thread(target=self._run, name="watched-files", daemon=True).start()

    def stop(self) -> None:
        """Look no more; idempotent."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(_LOOK_SECONDS):
            for each in self._watched:
                try:
                    each.look(self._on_reload)
                except Exception:  # the next look must come
                    _log.exception("a look for changed files failed")


class _Unreadable(FailedPrecondition):
    """A file is not there, or cannot be read."""


def read_files(files: Mapping[Path, str]) -> Contents:
    """Return the contents of small files.

    Args:
        files: Each with the setting that names it, for the message.

    Raises:
        FailedPrecondition: One cannot be read, or is larger than what is expected there.
    """
    return {file: _read(file, setting=setting) for file, setting in files.items()}


def _read(file: Path, *, setting: str) -> bytes:
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _Unreadable(f"{setting}: expected a readable file, got {file}: {error.strerror}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise _Unreadable(f"{setting}: expected a file of at most {_MAX_FILE_BYTES} bytes, got more: {file}")
    return content
