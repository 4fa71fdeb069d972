"""The model repository of a serving process among several: it asks the supervisor, which changes all of them."""

import itertools
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from typing import Literal

from serveprune.errors import (
    Code,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ServePruneError,
    Unavailable,
    Unimplemented,
)
from serveprune.repository.model_folder import ModelFolder
from serveprune.supervision.messages import ChangeAsked, ChangeEnded

_KINDS: Mapping[Code, type[ServePruneError]] = {
    kind.code: kind for kind in (FailedPrecondition, InvalidArgument, NotFound, Unavailable, Unimplemented)
}


class AskingRepository:
    """`LoadableModels` that sends requests over a channel and is handed the outcomes. Thread-safe."""

    def __init__(
        self, send: Callable[[ChangeAsked], bool], folder: ModelFolder, *, served: Callable[[], Collection[str]]
    ) -> None:
        """Remember how to ask.

        Args:
            send: Sends to the supervisor, and tells whether that was possible.
            folder: Of the models.
            served: Returns the names of those that this process has.
        """
        self._send = send
        self._folder = folder
        self._served = served
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._asked: dict[int, Future[None]] = {}

    def load(self, name: str) -> "Future[None]":
        """See `LoadableModels.load`."""
        return self._ask("load", name)

    def unload(self, name: str) -> "Future[None]":
        """See `LoadableModels.unload`."""
        return self._ask("unload", name)

    def unloaded(self) -> Mapping[str, str]:
        """See `LoadableModels.unloaded`."""
        try:
            names = self._folder.names()
        except FailedPrecondition:
            return {}
        served = self._served()
        return {name: "not loaded" for name in names if name not in served}

    def take(self, ended: ChangeEnded) -> None:
        """Hand over how a change ended."""
        with self._lock:
            future = self._asked.pop(ended.number, None)
        if future is None:
            return
        if ended.code is None:
            future.set_result(None)
        else:
            future.set_exception(_KINDS.get(ended.code, Internal)(ended.message))

    def _ask(self, action: Literal["load", "unload"], name: str) -> "Future[None]":
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            number = next(self._numbers)
            self._asked[number] = future
        if not self._send(ChangeAsked(number=number, action=action, name=name)):
            self.take(ChangeEnded(number=number, code=Code.UNAVAILABLE, message="the supervisor is gone"))
        return future
