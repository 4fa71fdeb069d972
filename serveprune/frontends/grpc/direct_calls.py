"""Inference calls without a thread each: the runtime's own thread takes the messages, whoever has an answer sends it.

A call that has a thread changes threads five times before it is answered, which costs more than most small models do.
The runtime's Python half offers no other way, so this asks its core for the calls, by the few names in `_NAMES`; where
a version lacks one, `is_supported` says so and `BoundedMethod` serves in its stead.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any, ClassVar

import grpc
from grpc._cython import cygrpc

from serveprune.errors import (
    Cancelled,
    Code,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    ServePruneError,
    Unavailable,
)
from serveprune.frontends.authorization import Authorization, shown_in_metadata
from serveprune.frontends.grpc import rounds
from serveprune.frontends.grpc.inference import InferenceService
from serveprune.frontends.grpc.receiving import ReceivingCalls
from serveprune.frontends.grpc.rounds import Rounds
from serveprune.frontends.grpc.runtime import Server
from serveprune.frontends.grpc.status import details_of, trailing_metadata_of
from serveprune.oip.answer import Answer
from serveprune.oip.messages import InferenceRequest, InferenceResponse

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0
_INLINE_BYTES = 2**16
"""Messages above this size are decoded and encoded in a pool; the runtime's thread serves the others meanwhile."""
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

_Settled = tuple[object | None, tuple[()]]
"""What the runtime's loop wants to hear after an event: the call that is over, if one is, and nothing to call."""
_GOES_ON: _Settled = (None, ())


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
    ) -> None:
        self._authorization = authorization
        self._unauthorized: set[_Call] = set()
        self._max_active = max_active
        self._max_waiting = max_waiting
        self._active: dict[_Call, None] = {}
        self._answered: dict[_Call, float] = {}
        self._waiting: dict[_Call, None] = {}
        self._timeout_seconds = timeout_seconds
        self._patience_seconds = patience_seconds
        self._submitted: list[_Call] = []
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

    def submit_in_round(self, request: InferenceRequest, call: "_Call") -> Answer:
        """Submit a request in the serving thread; the answer comes no sooner than this has returned."""
        answer = self.service.submit(request, more=True)
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
                return self._turn_away(_RefusedCall(self, event, refusal))
        call = _Call(self, event)
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
                    retry_after_seconds=_RETRY_SECONDS,
                )
            )
        else:
            call.watch()
        return call

    def _turn_away(self, call: "_RefusedCall") -> object:
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

    def note_answered(self, call: "_Call") -> None:
        """Note, with the lock held, that an answer is on its way; it stays in memory until its caller has read it."""
        if call in self._active:
            del self._active[call]
            self._answered[call] = time.monotonic()

    def release(self, call: "_Call") -> None:
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


class _Call:
    """One call on its way: of what was asked of the core, the last thing to come back ends it.

    A call that is answered in the round in which its message came needs no watch for a caller who leaves: that is
    asked together with sending the answer. Others are watched from the end of the round on.
    """

    __slots__ = (
        "_answer",
        "_calls",
        "_core",
        "_due",
        "_event",
        "_has_left",
        "_has_message",
        "_is_closing",
        "_is_watched",
        "begun",
    )

    _code_without_message: ClassVar[Code] = Code.INVALID_ARGUMENT

    def __init__(self, calls: DirectCalls, event: Any) -> None:
        self._calls = calls
        self._event = event
        self._core = event.call
        self._answer: Answer | None = None
        self._has_message = False
        self._due = 0
        self._is_watched = False
        self._is_closing = False
        self._has_left = False
        self.begun = time.monotonic()

    def receive(self) -> None:
        """Ask the core for the message."""
        self.begun = time.monotonic()
        self._calls.receiving.begin(self)
        with self._calls.lock:
            is_open = not self._is_closing
            if is_open:
                self._due += 1
        if is_open:
            self._core.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._received)
        else:
            # `_end` comes, or came, by itself.
            self._calls.receiving.end(self)

    def watch(self) -> None:
        """Ask the core to tell when the caller leaves."""
        with self._calls.lock:
            if self._is_closing or self._is_watched:
                return
            self._is_watched = True
            self._due += 1
        self._core.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._closed)

    def refuse(self, error: ServePruneError) -> None:
        """End a call that does not reach the data plane."""
        self._has_message = True
        self._calls.reject(error.code)
        self._fail(error)

    def time_out(self) -> None:
        """End a call that took too long."""
        answer = self._answer
        if answer is not None:
            # In this order, for to cancel is an end of its own.
            self._fail(DeadlineExceeded("the request was not answered in time"))
            answer.cancel()

    def cancel(self) -> None:
        """End a call whose caller does not read the answer, or does not send the message."""
        self._core.cancel()

    def _received(self, event: Any) -> _Settled:
        """Take the message, in the thread of the runtime, which this must neither block nor end."""
        message: bytes | None = event.batch_operations[0].message()
        self._calls.receiving.end(self)
        if message is None:
            # The caller has left or has sent none; which of both shows when the call has ended.
            self._fail(InvalidArgument(f"expected one {self._calls.service.request_name}, got none"))
        else:
            self._has_message = True
            self._take(message)
        return self._settle()

    def _take(self, message: bytes) -> None:
        if len(message) <= _INLINE_BYTES:
            self._infer(message, lambda request: self._calls.submit_in_round(request, self))
            self._calls.look_at_round()
        else:
            self.watch()
            self._apart(self._infer, message, self._calls.service.submit)

    def _apart(self, work: Callable[..., None], *subjects: Any) -> None:
        try:
            self._calls.pool.submit(work, *subjects)
        except RuntimeError:  # the pool was shut down
            self._fail(Unavailable("the server is shutting down", retry_after_seconds=_RETRY_SECONDS))

    def _infer(self, message: bytes, submit: Callable[[InferenceRequest], Answer]) -> None:
        event = self._event
        try:
            try:
                request = self._calls.service.decode(
                    message, metadata=event.invocation_metadata, deadline=event.call_details.deadline
                )
            except ServePruneError as error:
                self.refuse(error)
                return
            answer = self._answer = submit(request)
            answer.add_done_callback(self._done)
            if self._is_closing:
                answer.cancel()
        except ServePruneError as error:
            self._fail(error)
        except Exception as error:  # whatever it is, the caller must not see it
            self._fail(_unexpected(error))

    def _done(self, answer: Answer) -> None:
        """Send the answer, in the thread that has it."""
        # An answer keeps its callbacks, and so this call, which must not wait for the garbage collector.
        self._answer = None
        if answer.cancelled():
            self._fail(Cancelled("the caller left before the request was answered"))
            return
        error = answer.exception()
        if error is None:
            response = answer.result()
            if sum(tensor.size_bytes for tensor in response.outputs) <= _INLINE_BYTES:
                self._encode(response)
            else:
                self._apart(self._encode, response)
        elif isinstance(error, ServePruneError):
            self._fail(error)
        else:
            self._fail(_unexpected(error))

    def _encode(self, response: InferenceResponse) -> None:
        try:
            serialized, metadata = self._calls.service.encode(response)
        except ServePruneError as error:
            self._fail(error)
        except Exception as error:  # see above
            self._fail(_unexpected(error))
        else:
            self._close(
                cygrpc.SendMessageOperation(serialized, 0),
                cygrpc.SendStatusFromServerOperation(metadata, cygrpc.StatusCode.ok, b"", 0),
            )

    def _fail(self, error: ServePruneError) -> None:
        code: int = grpc.StatusCode[error.code.name].value[0]
        self._close(
            cygrpc.SendStatusFromServerOperation(trailing_metadata_of(error), code, details_of(error).encode(), 0)
        )

    def _close(self, *operations: Any) -> None:
        """Send the end of the call, once; a call whose caller has left is beyond that."""
        calls = self._calls
        with calls.lock:
            if self._is_closing:
                return
            self._is_closing = True
            self._due += 1
            calls.note_answered(self)
        if self._is_watched:
            tag = self._sent
        else:
            operations = (cygrpc.ReceiveCloseOnServerOperation(0), *operations)
            tag = self._sent_and_closed
        self._core.start_server_batch((cygrpc.SendInitialMetadataOperation(None, 0), *operations), tag)

    def _sent(self, event: Any) -> _Settled:
        return self._settle()

    def _sent_and_closed(self, event: Any) -> _Settled:
        self._has_left = event.batch_operations[1].cancelled()
        return self._settle()

    def _closed(self, event: Any) -> _Settled:
        # A call that nobody cancelled is closed by its answer.
        self._has_left = event.batch_operations[0].cancelled()
        return self._settle(is_closing=True)

    def _settle(self, *, is_closing: bool = False) -> _Settled:
        """Note that something has come back from the core."""
        with self._calls.lock:
            self._is_closing |= is_closing
            self._due -= 1
            is_over = self._is_closing and not self._due
        if not is_over:
            return _GOES_ON
        self._end()
        return self, ()

    def _end(self) -> None:
        """Give everything back when the call is over, by an answer or because the caller has left."""
        answer = self._answer
        if answer is not None:
            answer.cancel()
        if not self._has_message:
            self._calls.receiving.end(self)
            self._calls.reject(Code.CANCELLED if self._has_left else self._code_without_message)
        self._calls.release(self)


class _RefusedCall(_Call):
    """One that will not be answered, whose message is awaited all the same.

    Attributes:
        refusal: Why.
    """

    __slots__ = ("refusal",)

    _code_without_message = Code.UNAUTHENTICATED

    def __init__(self, calls: DirectCalls, event: Any, refusal: ServePruneError) -> None:
        super().__init__(calls, event)
        self.refusal = refusal

    def _received(self, event: Any) -> _Settled:
        """Refuse the call, whatever its message is."""
        message: bytes | None = event.batch_operations[0].message()
        self._calls.receiving.end(self)
        if message is None:
            # As for other calls, its end is what tells why.
            self._fail(self.refusal)
        else:
            self.refuse(self.refusal)
        return self._settle()


def _unexpected(error: BaseException) -> Internal:
    _log.error("unexpected failure in a call of ModelInfer", exc_info=error)
    return Internal("internal error; see the server's log")
