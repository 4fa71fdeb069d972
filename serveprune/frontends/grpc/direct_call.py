"""One inference call of `direct_calls`: the last thing that comes back of what was asked of the core ends it."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import grpc
from grpc._cython import cygrpc

from serveprune.errors import (
    Cancelled,
    Code,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ServePruneError,
    Unavailable,
)
from serveprune.frontends.grpc.status import details_of, trailing_metadata_of
from serveprune.frontends.observed_request import ObservedRequest
from serveprune.observability.request_record import RequestRecord
from serveprune.oip.answer import Answer
from serveprune.oip.messages import InferenceRequest, InferenceResponse

if TYPE_CHECKING:
    from serveprune.frontends.grpc.direct_calls import DirectCalls

_log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
_INLINE_BYTES = 2**16
"""Messages above this size are decoded and encoded in a pool; the runtime's thread serves the others meanwhile."""

_Settled = tuple[object | None, tuple[()]]
"""What the runtime's loop wants to hear after an event: the call that is over, if one is, and nothing to call."""
_GOES_ON: _Settled = (None, ())


class DirectCall:
    """One call on its way.

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
        "_observed",
        "begun",
    )

    _code_without_message: ClassVar[Code] = Code.INVALID_ARGUMENT

    def __init__(self, calls: "DirectCalls", event: Any, *, observed: ObservedRequest | None = None) -> None:
        self._calls = calls
        self._observed = observed
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
            self._infer(message, self._submit_in_round)
            self._calls.look_at_round()
        else:
            self.watch()
            self._apart(self._infer, message, self._calls.service.submit)

    def _apart(self, work: Callable[..., None], *subjects: Any) -> None:
        try:
            self._calls.pool.submit(work, *subjects)
        except RuntimeError:  # the pool was shut down
            self._fail(Unavailable("the server is shutting down", retry_after_seconds=RETRY_SECONDS))

    def _submit_in_round(self, request: InferenceRequest, *, record: RequestRecord | None = None) -> Answer:
        return self._calls.submit_in_round(request, self, record=record)

    def _infer(self, message: bytes, submit: Callable[..., Answer]) -> None:
        event = self._event
        try:
            try:
                request = self._calls.service.decode(
                    message, metadata=event.invocation_metadata, deadline=event.call_details.deadline
                )
            except ServePruneError as error:
                self.refuse(error)
                return
            observed = self._observed
            if observed is None:
                answer = self._answer = submit(request)
            else:
                observed.asked(request, size_bytes=len(message))
                answer = self._answer = submit(request, record=observed.record)
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
            if self._observed is not None:
                metadata = (*metadata, *self._observed.answered(size_bytes=len(serialized)))
            self._close(
                cygrpc.SendMessageOperation(serialized, 0),
                cygrpc.SendStatusFromServerOperation(metadata, cygrpc.StatusCode.ok, b"", 0),
            )

    def _fail(self, error: ServePruneError) -> None:
        code: int = grpc.StatusCode[error.code.name].value[0]
        metadata = trailing_metadata_of(error)
        if self._observed is not None:
            self._observed.failed(error)
            metadata = (*metadata, *self._observed.answered(size_bytes=0))
        self._close(cygrpc.SendStatusFromServerOperation(metadata, code, details_of(error).encode(), 0))

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
        if self._observed is not None:
            self._observed.left()
        self._calls.release(self)


class RefusedCall(DirectCall):
    """One that will not be answered, whose message is awaited all the same.

    Attributes:
        refusal: Why.
    """

    __slots__ = ("refusal",)

    _code_without_message = Code.UNAUTHENTICATED

    def __init__(
        self, calls: "DirectCalls", event: Any, refusal: ServePruneError, *, observed: ObservedRequest | None = None
    ) -> None:
        super().__init__(calls, event, observed=observed)
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
