"""The builder of a serving process among several: it asks the supervisor, which builds once for all."""

import itertools
import queue
import threading
from collections.abc import Callable
from threading import Event

from serveprune.artifacts.builder import BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.supervision.messages import BuildAsked, BuildEnded, BuildProgressed

_POLL_SECONDS = 0.1


class AskingBuilder:
    """An `ArtifactBuilder` that sends requests over a channel and is handed the answers. Thread-safe."""

    def __init__(self, send: Callable[[BuildAsked], bool]) -> None:
        """Remember how to ask.

        Args:
            send: Sends to the supervisor, and tells whether that was possible.
        """
        self._send = send
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._answers: dict[int, queue.SimpleQueue[BuildProgressed | BuildEnded]] = {}

    def build(
        self, request: BuildRequest, *, on_progress: Callable[[BuildProgress], None], cancelled: Event
    ) -> BuildResult:
        """See `ArtifactBuilder.build`. A cancelled build goes on for the processes that still wait for it."""
        answers: queue.SimpleQueue[BuildProgressed | BuildEnded] = queue.SimpleQueue()
        with self._lock:
            number = next(self._numbers)
            self._answers[number] = answers
        try:
            if not self._send(BuildAsked(number=number, request=request)):
                return BuildResult(BuildOutcome.FAILED, reasons=("the supervisor is gone",))
            return self._follow(answers, on_progress=on_progress, cancelled=cancelled)
        finally:
            with self._lock:
                del self._answers[number]

    def take(self, answer: BuildProgressed | BuildEnded) -> None:
        """Hand over what the supervisor said of a build."""
        with self._lock:
            answers = self._answers.get(answer.number)
        if answers is not None:
            answers.put(answer)

    def _follow(
        self,
        answers: "queue.SimpleQueue[BuildProgressed | BuildEnded]",
        *,
        on_progress: Callable[[BuildProgress], None],
        cancelled: Event,
    ) -> BuildResult:
        while not cancelled.is_set():
            try:
                answer = answers.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(answer, BuildEnded):
                return answer.result
            on_progress(answer.progress)
        return BuildResult(BuildOutcome.FAILED, reasons=("cancelled",))
