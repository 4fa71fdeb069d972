"""One builder among machines: a lease that expires, without any clock that machines would have to agree on."""

import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from serveprune.artifacts.object_storage import ObjectStorage
from serveprune.errors import ServePruneError

_log = logging.getLogger(__name__)

_RENEWALS_PER_LEASE = 4


class FlightNote(BaseModel):
    """What stands in a lease: who has it, how often it was renewed, and how the build ended if it failed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    holder: str
    renewals: int = 0
    released: bool = False
    failure: str | None = None


class SharedFlight:
    """Watches the leases of one name, and takes the next one when the last is released or no longer renewed.

    Leases are numbered, ``flights/<name>/<number>``, and made by a write that fails if the number is taken: so of all
    who see the last one expire, one gets the next. An expired holder finds the higher number and knows that it lost.
    Whether a lease is renewed is observed on one's own monotonic clock. For one thread.
    """

    def __init__(
        self,
        storage: ObjectStorage,
        name: str,
        *,
        lease_seconds: float,
        on_lost: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Describe the flight; nothing is read yet.

        Args:
            storage: Where leases are.
            name: What is to be done by one at a time.
            lease_seconds: How long a lease lasts that nobody renews.
            on_lost: Told, in a thread of the lease, when another one took over.
            clock: Monotonic seconds.
        """
        self._storage = storage
        self._folder = f"flights/{name}"
        self._lease_seconds = lease_seconds
        self._on_lost = on_lost
        self._clock = clock
        self._seen: tuple[int, bytes | None] | None = None
        self._seen_at = 0.0
        self.last: FlightNote | None = None

    def try_take(self) -> "SharedLease | None":
        """Take the lease if nobody has it; else note what is seen of it, and return ``None``.

        Raises:
            Unavailable, FailedPrecondition: See `ObjectStorage.read`.
        """
        number = _last_number(self._storage, self._folder)
        content = self._storage.read(f"{self._folder}/{number}") if number else None
        now = self._clock()
        if self._seen != (number, content):
            self._seen, self._seen_at = (number, content), now
        self.last = _parsed(content)
        is_free = number == 0 or (self.last is not None and self.last.released)
        is_expired = now - self._seen_at >= self._lease_seconds
        if not is_free and not is_expired:
            return None
        name, note = f"{self._folder}/{number + 1}", FlightNote(holder=uuid.uuid4().hex)
        self._storage.create(name, note.model_dump_json().encode())
        # Whoever's note it is has it. A storage that ignores the condition lets all of them write, and the last one has
        # it; and a write whose answer was lost is refused when the SDK tries it again, though it was the first.
        if _parsed(self._storage.read(name)) != note:
            return None
        if not is_free:
            _log.warning("%s: its holder has not renewed the lease for %g s; taken over", name, self._lease_seconds)
        _forget(self._storage, self._folder, below=number + 1)
        return SharedLease(self._storage, self._folder, number + 1, note, self._lease_seconds, self._on_lost)


class SharedLease:
    """A lease that is held, and renewed by a thread of its own until it is released."""

    def __init__(
        self,
        storage: ObjectStorage,
        folder: str,
        number: int,
        note: FlightNote,
        lease_seconds: float,
        on_lost: Callable[[], None],
    ) -> None:
        self._storage = storage
        self._folder = folder
        self._number = number
        self._note = note
        self._interval_seconds = lease_seconds / _RENEWALS_PER_LEASE
        self._on_lost = on_lost
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="shared-lease", daemon=True)
        self.is_lost = False
        self.failure: str | None = None
        self._thread.start()

    def release(self) -> None:
        """Let the next one take it at once; what went wrong is left for whoever waits."""
        self._ended.set()
        self._thread.join()
        if self.is_lost:
            return
        try:
            self._write(self._note.model_copy(update={"released": True, "failure": self.failure}))
        except ServePruneError as error:
            _log.warning("%s: the lease expires instead of being released: %s", self._folder, error.message)

    def _renew(self) -> None:
        while not self._ended.wait(self._interval_seconds):
            try:
                if _last_number(self._storage, self._folder) > self._number:
                    self.is_lost = True
                    _log.warning("%s: lost the lease; what is built is put all the same, if it is first", self._folder)
                    self._on_lost()
                    return
                self._note = self._note.model_copy(update={"renewals": self._note.renewals + 1})
                self._write(self._note)
            except ServePruneError as error:
                _log.warning("%s: the lease could not be renewed: %s", self._folder, error.message)

    def _write(self, note: FlightNote) -> None:
        self._storage.write(f"{self._folder}/{self._number}", note.model_dump_json().encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _last_number(storage: ObjectStorage, folder: str) -> int:
    return max((int(name) for name in storage.list(folder) if name.isdecimal()), default=0)


def _parsed(content: bytes | None) -> FlightNote | None:
    if content is None:
        return None
    try:
        return FlightNote.model_validate_json(content)
    except ValidationError:
        return None  # of another version, or torn: it counts by whether it changes


def _forget(storage: ObjectStorage, folder: str, *, below: int) -> None:
    try:
        for name in storage.list(folder):
            if name.isdecimal() and int(name) < below:
                storage.remove(f"{folder}/{name}")
    except ServePruneError as error:
        _log.info("%s: what is left of earlier leases stays: %s", folder, error.message)
