"""Inference calls without a thread each: the runtime's own thread takes the messages, whoever has an answer sends it.

A call that has a thread changes threads five times before it is answered, which costs more than most small models do.
The runtime's Python half offers no other way, so this asks its core for the calls, by the few names in `_NAMES`; where
a version lacks one, `is_supported` says so and `BoundedMethod` serves in its stead.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any

from grpc._cython import cygrpc

from serveprune.errors import Code, ResourceExhausted
from serveprune.frontends.authorization import Authorization, shown_in_metadata
from serveprune.frontends.grpc import rounds
from serveprune.frontends.grpc.direct_call import RETRY_SECONDS, DirectCall, RefusedCall
from serveprune.frontends.grpc.inference import InferenceService
from serveprune.frontends.grpc.receiving import ReceivingCalls
from serveprune.frontends.grpc.rounds import Rounds
from serveprune.frontends.grpc.runtime import Server
from serveprune.frontends.observed_request import ObservedRequest
from serveprune.observability.request_observer import RequestObserver
from serveprune.observability.request_record import RequestRecord
from serveprune.oip.answer import Answer
from serveprune.oip.messages import InferenceRequest

_MOST_TOGETHER = 64
"""Calls that are submitted before the first of them is computed, however many more there are to read."""
_MOST_UNAUTHORIZED = 8
"""Calls without a token whose messages are received nevertheless, so that their callers can be told what they lack."""

_NAMES = (
    "ReceiveCloseOnServerOperation",
    "ReceiveMessageOperation",
    "SendInitialMetadataOperation",
    "SendMessageOperation",
    "SendStatusFromServerOperation",
)


def is_supported() -> bool:
    """Tell whether the runtime has what this module, and `rounds`, need of it."""
    return rounds.is_supported() and all(hasattr(cygrpc, name) for name in _NAMES)


class DirectCalls:
    """Takes the calls of ``ModelInfer`` from the runtime.

    No more than so many calls are in progress at once, for each holds its message or its answer; others wait unread,
    and calls that arrive while too many wait, or without a token, are refused. Thread-safe.

    Args:
        service: Decodes, submits, encodes.
        receiving: Cuts off clients that take too long to send their message.
        max_active: Calls in progress at once.
        max_waiting: Calls that may wait.
        timeout_seconds: Within which a call is answered.
        patience_seconds: Within which a caller must have taken the answer.
        pool: Works on large messages.
        on_rejected: Told the code of each call that does not reach the data plane.
        authorization: Judges who may call; without one everybody may.
        observer: Records calls.
    """

    def __init__(
        self,
        service: InferenceService,
        receiving: ReceivingCalls,
        *,
        max_active: int,
        max_waiting: int,
        timeout_seconds: float,
        patience_seconds: float,
        pool: ThreadPoolExecutor,
        on_rejected: Callable[[Code], None],
        authorization: Authorization | None = None,
        observer: RequestObserver | None = None,
    ) -> None:
        self._authorization = authorization
        self._observer = observer
        self._unauthorized: set[DirectCall] = set()
        self._max_active = max_active
        self._max_waiting = max_waiting
        self._active: dict[DirectCall, None] = {}
        self._answered: dict[DirectCall, float] = {}
        self._waiting: dict[DirectCall, None] = {}
        self._timeout_seconds = timeout_seconds
        self._patience_seconds = patience_seconds
        self._submitted: list[DirectCall] = []
        self.lock = threading.Lock()
        self.service = service
        self.receiving = receiving
        self.pool = pool
        self.reject = on_rejected

    def start(self, server: Server) -> None:
        """Start the server, whose thread submits what comes together before any of it is computed."""
        Rounds(
            server,
            method=self.service.infer_method,
            take=self._arrived,
            end_round=self._proceed,
            is_round_open=lambda: bool(self._submitted),
        ).start()

    def submit_in_round(
        self, request: InferenceRequest, call: DirectCall, *, record: RequestRecord | None = None
    ) -> Answer:
        """Submit a request in the serving thread; the answer comes no sooner than this has returned."""
        answer = self.service.submit(request, more=True, record=record)
        self._submitted.append(call)
        return answer

    def look_at_round(self) -> None:
        """End the round if more can't come or enough has come."""
        submitted = len(self._submitted)
        if submitted >= _MOST_TOGETHER or (
            # All calls that may be in progress are there, so that waiting for more is in vain.
            submitted >= len(self._active) and self._in_progress() >= self._max_active
        ):
            self._proceed()

    def _proceed(self) -> None:
        submitted, self._submitted = self._submitted, []
        self.service.proceed()
        for call in submitted:
            call.watch()

    @property
    def waiting(self) -> int:
        """Calls that wait for others to end."""
        return len(self._waiting)

    def _arrived(self, event: Any) -> object:
        """Take a call over from the runtime's core; return what will be over when the call is."""
        if self._authorization is not None:
            refusal = self._authorization.refusal(shown_in_metadata(event.invocation_metadata))
            if refusal is not None:
                return self._turn_away(RefusedCall(self, event, refusal, observed=self._observed(event)))
        call = DirectCall(self, event, observed=self._observed(event))
        with self.lock:
            begins = self._in_progress() < self._max_active
            refused = not begins and len(self._waiting) >= self._max_waiting
            if begins:
                self._active[call] = None
            elif not refused:
                self._waiting[call] = None
        if begins:
            call.receive()
        elif refused:
            call.refuse(
                ResourceExhausted(
                    f"{self._max_waiting} gRPC calls already wait (server.max_queued_requests); retry later",
                    retry_after_seconds=RETRY_SECONDS,
                )
            )
        else:
            call.watch()
        return call

    def _observed(self, event: Any) -> ObservedRequest | None:
        if self._observer is None:
            return None
        record = self._observer.begin("grpc", self.service.infer_method[1:], event.invocation_metadata)
        return ObservedRequest(self._observer, record)

    def _turn_away(self, call: RefusedCall) -> object:
        """Refuse a call that may not be answered: it takes no place of those that may.

        Python's asyncio client reports an internal error if its call ends while it still sends the message, so that is
        waited for, of a few calls at a time.
        """
        with self.lock:
            waits = len(self._unauthorized) < _MOST_UNAUTHORIZED
            if waits:
                self._unauthorized.add(call)
        if waits:
            call.receive()
        else:
            call.refuse(call.refusal)
        return call

    def note_answered(self, call: DirectCall) -> None:
        """Note, with the lock held, that an answer is on its way; it stays in memory until its caller has read it."""
        if call in self._active:
            del self._active[call]
            self._answered[call] = time.monotonic()

    def release(self, call: DirectCall) -> None:
        """Note that a call is over, and begin with one that waits."""
        following = None
        with self.lock:
            self._waiting.pop(call, None)
            self._unauthorized.discard(call)
            self._active.pop(call, None)
            self._answered.pop(call, None)
            if self._waiting and self._in_progress() < self._max_active:
                following = next(iter(self._waiting))
                del self._waiting[following]
                self._active[following] = None
        if following is not None:
            following.receive()

    def end_overdue(self) -> None:
        """End the calls whose time is over; to be called now and then."""
        now = time.monotonic()
        with self.lock:
            # The oldest come first in both.
            late = list(takewhile(lambda call: now - call.begun > self._timeout_seconds, self._active))
            stuck = [
                call
                for call, _ in takewhile(lambda item: now - item[1] > self._patience_seconds, self._answered.items())
            ]
        for call in late:
            call.time_out()
        for call in stuck:
            call.cancel()

    def _in_progress(self) -> int:
        return len(self._active) + len(self._answered)
