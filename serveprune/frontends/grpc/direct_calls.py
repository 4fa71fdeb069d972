"""Inference calls without a thread each: the runtime's own thread takes the messages, whoever has an answer sends it.

A call that has a thread changes threads five times before it is answered, which costs more than most small models do.
The runtime offers no other way, so this reaches into it, for the few names in `_NAMES`; where a version of it lacks
one, `is_supported` says so and `BoundedMethod` serves in its stead.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any

import grpc
from grpc import _server as runtime
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
from serveprune.frontends.grpc.runtime import RpcMethodHandler, Server, ServicerContext
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
    "_Context",
    "_possibly_finish_call",
    "_status",
    "_is_rpc_state_active",
    "_CANCELLED",
    "_RECEIVE_MESSAGE_TOKEN",
)


def is_supported() -> bool:
    """Tell whether the runtime has what this module, and `rounds`, need of it."""
    names = (*_NAMES, *rounds.NAMES)
    return all(hasattr(runtime, name) for name in names) and hasattr(cygrpc, "ReceiveMessageOperation")


class DirectCalls(ThreadPoolExecutor):
    """Takes the calls of ``ModelInfer`` from the runtime, which takes this for the pool that is to run them.

    No more than so many calls are in progress at once, for each holds its message or its answer; others wait unread,
    and calls that arrive while too many wait, or without a token, are refused. Thread-safe.

    Attributes:
        handler: Of the method.

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
        super().__init__(1)
        self._authorization = authorization
        self._unauthorized: set[_Call] = set()
        self._max_active = max_active
        self._max_waiting = max_waiting
        self._active: dict[_Call, None] = {}
        self._answered: dict[_Call, float] = {}
        self._waiting: dict[_Call, None] = {}
        self._lock = threading.Lock()
        self.handler: RpcMethodHandler = grpc.stream_unary_rpc_method_handler(_pooled_in(self))
        self.service_of = service
        self.receiving = receiving
        self._timeout_seconds = timeout_seconds
        self._patience_seconds = patience_seconds
        self.pool = pool
        self.reject = on_rejected
        self._submitted = 0

    def start(self, server: Server) -> None:
        """Start the server, whose thread submits what comes together before any of it is computed."""
        rounds.start_in_rounds(server, end_round=self._proceed, is_round_open=lambda: self._submitted > 0)

    def submit_in_round(self, request: InferenceRequest) -> Answer:
        """Submit a request in the serving thread."""
        self._submitted += 1
        answer = self.service_of.submit(request, more=True)
        if self._submitted >= _MOST_TOGETHER or self._is_round_full():
            self._proceed()
        return answer

    def _is_round_full(self) -> bool:
        """Tell whether all calls that may be in progress are there, so that waiting for more is in vain."""
        return self._submitted >= len(self._active) and self._in_progress() >= self._max_active

    def _proceed(self) -> None:
        self._submitted = 0
        self.service_of.proceed()

    @property
    def waiting(self) -> int:
        """Calls that wait for others to end."""
        return len(self._waiting)

    def submit(self, run: Any, respond: Any, /, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
        """Take a call over from the runtime, which hands over what it would run in a pool."""
        call = _Call(self, *arguments[:2])
        if self._authorization is not None:
            refusal = self._authorization.refusal(call.shown())
            if refusal is not None:
                self._turn_away(call, refusal)
                return
        with self._lock:
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

    def _turn_away(self, call: "_Call", refusal: ServePruneError) -> None:
        """Refuse a call that may not be answered: it takes no place of those that may.

        Python's asyncio client reports an internal error if its call ends while it still sends the message, so that is
        waited for, of a few calls at a time.
        """
        with self._lock:
            waits = len(self._unauthorized) < _MOST_UNAUTHORIZED
            if waits:
                self._unauthorized.add(call)
        if waits:
            call.refusal = refusal
            call.receive()
        else:
            call.refuse(refusal)

    def answered(self, call: "_Call") -> None:
        """Note that an answer is on its way; it stays in memory until its caller has read it."""
        with self._lock:
            if call in self._active:
                del self._active[call]
                self._answered[call] = time.monotonic()

    def release(self, call: "_Call") -> None:
        """Note that a call is over, and begin with one that waits."""
        following = None
        with self._lock:
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
        with self._lock:
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
    """One call on its way.

    Attributes:
        begun: When its message was asked for.
        refusal: Why it is not answered, known before its message came.
    """

    __slots__ = ("_calls", "_context", "_event", "_has_message", "_state", "_submitted", "begun", "refusal")

    def __init__(self, calls: DirectCalls, event: Any, state: Any) -> None:
        self._calls = calls
        self._event = event
        self._state = state
        self._context: ServicerContext = runtime._Context(event, state, None)
        self._submitted: Answer | None = None
        self._has_message = False
        self.refusal: ServePruneError | None = None
        self.begun = time.monotonic()
        state.callbacks.append(self._ended)

    def shown(self) -> list[bytes]:
        """Return what its metadata shows."""
        return shown_in_metadata(self._context.invocation_metadata())

    def receive(self) -> None:
        """Ask the runtime for the message."""
        self.begun = time.monotonic()
        self._calls.receiving.begin(self._context)
        state = self._state
        with state.condition:
            active = runtime._is_rpc_state_active(state)
            if active:
                operations = (cygrpc.ReceiveMessageOperation(0),)
                self._event.call.start_server_batch(operations, self._received)
                state.due.add(runtime._RECEIVE_MESSAGE_TOKEN)
        if not active:
            # `_ended` comes, or came, by itself.
            self._calls.receiving.end(self._context)

    def refuse(self, error: ServePruneError) -> None:
        """End a call that does not reach the data plane."""
        self._has_message = True
        self._calls.reject(error.code)
        self._fail(error)

    def time_out(self) -> None:
        """End a call that took too long."""
        submitted = self._submitted
        if submitted is not None:
            # In this order, for to cancel is an end of its own.
            self._fail(DeadlineExceeded("the request was not answered in time"))
            submitted.cancel()

    def cancel(self) -> None:
        """End a call whose caller does not read the answer."""
        self._context.cancel()

    def _received(self, event: Any) -> Any:
        """Take the message, in the thread of the runtime, which this must neither block nor end."""
        message: bytes | None = event.batch_operations[0].message()
        self._calls.receiving.end(self._context)
        if self.refusal is not None:
            self.refuse(self.refusal)
        elif message is None:
            # The caller has left or has sent none; which of both shows when the call has ended.
            self._fail(InvalidArgument(f"expected one {self._calls.service_of.request_name}, got none"))
        else:
            self._has_message = True
            if len(message) <= _INLINE_BYTES:
                self._infer(message, self._calls.submit_in_round)
            else:
                self._apart(self._infer, message, self._calls.service_of.submit)
        state = self._state
        with state.condition:
            return runtime._possibly_finish_call(state, runtime._RECEIVE_MESSAGE_TOKEN)

    def _apart(self, work: Callable[..., None], *subjects: Any) -> None:
        try:
            self._calls.pool.submit(work, *subjects)
        except RuntimeError:  # the pool was shut down
            self._fail(Unavailable("the server is shutting down", retry_after_seconds=_RETRY_SECONDS))

    def _infer(self, message: bytes, submit: Callable[[InferenceRequest], Answer]) -> None:
        try:
            try:
                request = self._calls.service_of.decode(message, self._context)
            except ServePruneError as error:
                self.refuse(error)
                return
            submitted = self._submitted = submit(request)
            submitted.add_done_callback(self._done)
            if not runtime._is_rpc_state_active(self._state):
                submitted.cancel()
        except ServePruneError as error:
            self._fail(error)
        except Exception as error:  # whatever it is, the caller must not see it
            self._fail(_unexpected(error))

    def _done(self, submitted: Answer) -> None:
        """Send the answer, in the thread that has it."""
        # An answer keeps its callbacks, and so this call, which must not wait for the garbage collector.
        self._submitted = None
        if submitted.cancelled():
            self._fail(Cancelled("the caller left before the request was answered"))
            return
        error = submitted.exception()
        if error is None:
            response = submitted.result()
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
            serialized, metadata = self._calls.service_of.encode(response)
            self._finish(serialized, metadata)
        except ServePruneError as error:
            self._fail(error)
        except Exception as error:  # see above
            self._fail(_unexpected(error))

    def _fail(self, error: ServePruneError) -> None:
        state = self._state
        with state.condition:
            if runtime._is_rpc_state_active(state):
                state.code = grpc.StatusCode[error.code.name]
                state.details = details_of(error).encode()
        self._finish(None, trailing_metadata_of(error))

    def _finish(self, serialized: bytes | None, metadata: tuple[tuple[str, str], ...]) -> None:
        """Send the end of the call, once; a call whose caller has left is beyond that."""
        state = self._state
        with state.condition:
            if runtime._is_rpc_state_active(state):
                state.trailing_metadata = metadata
                self._calls.answered(self)
                runtime._status(self._event, state, serialized)

    def _ended(self) -> None:
        """Give everything back when the call is over, by an answer or because the caller has left."""
        submitted = self._submitted
        if submitted is not None:
            submitted.cancel()
        if not self._has_message:
            self._calls.receiving.end(self._context)
            left = self._state.client is runtime._CANCELLED
            self._calls.reject(Code.CANCELLED if left else Code.INVALID_ARGUMENT)
        self._calls.release(self)


def _pooled_in(calls: DirectCalls) -> Any:
    def behaviour(messages: Any, context: ServicerContext) -> None:
        raise AssertionError("the calls were to be taken over from the runtime")

    behaviour.experimental_thread_pool = calls  # type: ignore[attr-defined]
    return behaviour


def _unexpected(error: BaseException) -> Internal:
    _log.error("unexpected failure in a call of ModelInfer", exc_info=error)
    return Internal("internal error; see the server's log")
