import json
import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serveprune.artifacts.durability import sync_folder, write_file

_log = logging.getLogger(__name__)


class AcceptedSections:
    """The `user_config` that was applied last, in the store, so that a replica started later has it too.

    Ray knows the one that was sent last only, which may have been refused.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> dict[str, Any] | None:
        """Return it, if one was ever applied."""
        try:
            found = json.loads(self._file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _log.error("%s: cannot be read: %s", self._file, error)
            return None
        return found if isinstance(found, dict) else None

    def write(self, sections: Mapping[str, Any]) -> None:
        """Keep another one, whole or not at all; that the disk is full keeps nothing from being served."""
        # Several ingress replicas may write at once.
        new = self._file.with_suffix(f".{uuid.uuid4().hex}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            try:
                write_file(new, json.dumps(sections).encode())
                new.replace(self._file)
            finally:
                new.unlink(missing_ok=True)
            sync_folder(self._file.parent)
        except OSError as error:
            _log.error("%s: cannot be written, so replicas started later may not have it: %s", self._file, error)
