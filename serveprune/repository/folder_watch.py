"""Keeps a server at what the folder of models holds."""

import logging
import threading
import time
from collections.abc import Callable

from serveprune.errors import FailedPrecondition, ServePruneError
from serveprune.repository.model_repository import ModelRepository

_log = logging.getLogger(__name__)


class FolderWatch:
    """Looks at the folder again and again: loads what is new and whole, and unloads what is gone."""

    def __init__(
        self, repository: ModelRepository, *, poll_seconds: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._repository = repository
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._seen: dict[str, str] = {}
        self._said: dict[str, str] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="model-folder", daemon=True)

    def start(self) -> None:
        """Begin to look again and again."""
        for name in self._repository.held():
            # Served from the start; if one cannot be, it is to go.
            self._repository.begin("load", name)
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """Look no more; idempotent."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Load and unload what the folder says by now; returns before that is done."""
        try:
            names = self._repository.folder.names()
        except FailedPrecondition as error:
            # A folder that is not there for the moment is no reason to unload everything.
            self._say("", error.message)
            return
        self._said.pop("", None)
        held = self._repository.held()
        for name in names:
            try:
                self._look_at(name, held_token=held[name].token if name in held else None)
                self._said.pop(name, None)
            except ServePruneError as error:
                self._say(name, error.message)
        for name in held:
            if name not in names:
                self._repository.begin("unload", name)
        self._seen = {name: token for name, token in self._seen.items() if name in names}

    def _look_at(self, name: str, *, held_token: str | None) -> None:
        content = self._repository.folder.look(name)
        seen, self._seen[name] = self._seen.get(name), content.token
        whole = content.is_whole(seen=seen, now=self._clock(), settle_seconds=self._poll_seconds)
        if whole and content.token not in (held_token, self._repository.failure(name)):
            self._repository.begin("load", name)

    def _say(self, name: str, message: str) -> None:
        """Log what is wrong, once."""
        if self._said.get(name) != message:
            self._said[name] = message
            _log.error("model repository: %s", message)

    def _watch(self) -> None:
        while not self._stopped.wait(self._poll_seconds):
            try:
                self.look()
            except ServePruneError as error:
                self._say("", error.message)
            except Exception:  # the next look must come
                _log.exception("unexpected failure while looking at the model repository")
