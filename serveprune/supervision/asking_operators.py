"""Calls of operators that came to a serving process among several: it asks the supervisor, which has the admin API."""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future

from serveprune.errors import Unavailable
from serveprune.frontends.http.operator_call import OperatorAnswer, OperatorCall
from serveprune.supervision.messages import OperatorAnswered, OperatorAsked


class AskingOperators:
    """`AskOperators` that sends calls over a channel and is handed the answers. Thread-safe."""

    def __init__(self, send: Callable[[OperatorAsked], bool]) -> None:
        """Remember how to ask.

        Args:
            send: Sends to the supervisor, and tells whether that was possible.
        """
        self._send = send
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._asked: dict[int, Future[OperatorAnswer]] = {}

    def ask(self, call: OperatorCall) -> "Future[OperatorAnswer]":
        """See `AskOperators`."""
        future: Future[OperatorAnswer] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            number = next(self._numbers)
            self._asked[number] = future
        if not self._send(OperatorAsked(number=number, call=call)):
            self.take(OperatorAnswered(number=number, message="the supervisor is gone"))
        return future

    def take(self, answered: OperatorAnswered) -> None:
        """Hand over an answer."""
        with self._lock:
            future = self._asked.pop(answered.number, None)
        if future is None:
            return
        if answered.answer is not None:
            future.set_result(answered.answer)
        else:
            future.set_exception(Unavailable(answered.message, retry_after_seconds=1.0))
