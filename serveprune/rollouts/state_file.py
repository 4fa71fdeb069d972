"""Where a rollout is kept, so that it outlives the process, and who of several servers moves it on."""

import json
import logging
import os
import socket
import time
from pathlib import Path

from serveprune.artifacts.durability import sync_folder, write_file
from serveprune.artifacts.file_lock import FileLock
from serveprune.errors import DataLoss
from serveprune.rollouts.rollout import Rollout
from serveprune.rollouts.rollout_document import read_rollout, rollout_document

_log = logging.getLogger(__name__)


class StateFile:
    """The stored rollout of one model, in a folder that several servers may share. For one thread.

    Whoever holds the lease moves the rollout on; the others read where it is. The lease is a file lock, so that it ends
    with its holder however that ends.
    """

    def __init__(self, folder: Path, model: str) -> None:
        """Name the files; nothing is read yet.

        Args:
            folder: Is made where it is missing.
            model: A name as the config allows it.
        """
        self.path = folder / f"{model}.json"
        self._lock_path = folder / f"{model}.lock"
        self._lease: FileLock | None = None
        self._was_told = False

    def is_ours(self) -> bool:
        """Take the lease if nobody has it, and tell whether it is held here."""
        if self._lease is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._lock_path.touch()
                self._lease = FileLock.try_exclusive(self._lock_path)
                if self._lease is not None:
                    self._lock_path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
            except OSError as error:
                if not self._was_told:
                    self._was_told = True
                    _log.error("%s: %s; the rollout does not begin before it can be stored", self.path, error.strerror)
                self.close()
        return self._lease is not None

    def owner(self) -> str:
        """Return who holds, or held last, the lease, in words."""
        try:
            said = json.loads(self._lock_path.read_text())
            return f"process {said['pid']} on {said['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another server"

    def read(self) -> Rollout | None:
        """Return the stored rollout, if there is one.

        Raises:
            DataLoss: It cannot be read; what was there is set aside by now, if the lease is held here.
        """
        try:
            document = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataLoss(f"its stored state cannot be read: {error.strerror}") from error
        try:
            return read_rollout(document)
        except DataLoss as error:
            if self._lease is None:
                raise
            aside = self.path.with_suffix(f".corrupt-{time.time_ns()}")
            try:
                self.path.replace(aside)
            except OSError as problem:
                raise DataLoss(f"its stored state cannot be read, nor set aside: {problem.strerror}") from error
            _log.error("%s: %s; set aside as %s", self.path, error.message, aside.name)
            raise DataLoss(f"its stored state could not be read, and was set aside as {aside.name}") from error

    def write(self, rollout: Rollout) -> None:
        """Store a rollout, whole or not at all.

        Raises:
            OSError: The disk is full, or not there.
        """
        new = self.path.with_suffix(".new")
        write_file(new, rollout_document(rollout))
        new.replace(self.path)
        sync_folder(self.path.parent)

    def close(self) -> None:
        """Let go of the lease; idempotent."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()
