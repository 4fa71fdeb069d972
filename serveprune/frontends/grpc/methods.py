"""From a function of messages to a handler of the gRPC runtime."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from serveprune.errors import Code, Internal, InvalidArgument, ServePruneError
from serveprune.frontends.authorization import Authorization, shown_in_metadata
from serveprune.frontends.grpc.field_count import check_field_count
from serveprune.frontends.grpc.receiving import ReceivingCalls
from serveprune.frontends.grpc.runtime import RpcMethodHandler, ServicerContext
from serveprune.frontends.grpc.status import abort

_log = logging.getLogger(__name__)

Method = Callable[[Any, ServicerContext], Message]
"""Takes the request message and the call; returns the response message or raises."""


class UnaryMethods:
    """Makes handlers that answer one message with one, and every error with its status.

    To the runtime each is a method with a stream of requests, of which it reads one; on the wire there is no
    difference. Only so does the handler run before the message is there, and can limit the wait for it.
    """

    def __init__(self, receiving: ReceivingCalls) -> None:
        self._receiving = receiving

    def handler(
        self,
        answer: Method,
        *,
        request: type[Message],
        pool: ThreadPoolExecutor,
        on_rejected: Callable[[Code], None] = lambda code: None,
        authorization: Authorization | None = None,
        on_refused: Callable[[ServicerContext, ServePruneError], None] = lambda context, refusal: None,
    ) -> RpcMethodHandler:
        """Return the handler of a method.

        Args:
            answer: Called in a thread of ``pool``.
            request: Class of the request message.
            pool: Runs the calls.
            on_rejected: Told the code of each call whose message never came or is none.
            authorization: Judges who may call; without one everybody may.
            on_refused: Told of each call that may not be answered.
        """

        def behaviour(messages: Iterator[bytes], context: ServicerContext) -> bytes:
            try:
                received = self._receiving.receive(messages, context)
            except grpc.RpcError:
                on_rejected(Code.CANCELLED)
                raise
            if authorization is not None:
                # Not before its message came: Python's asyncio client reports an internal error if its call ends while
                # it still sends.
                refusal = authorization.refusal(shown_in_metadata(context.invocation_metadata()))
                if refusal is not None:
                    on_refused(context, refusal)
                    on_rejected(refusal.code)
                    return abort(context, refusal)
            try:
                message = parse_message(received, request)
            except InvalidArgument as error:
                on_rejected(error.code)
                return abort(context, error)
            try:
                return answer(message, context).SerializeToString()
            except ServePruneError as error:
                failure = error
            except Exception:  # whatever it is, the caller must not see it
                _log.exception("unexpected failure in a call with %s", request.DESCRIPTOR.full_name)
                failure = Internal("internal error; see the server's log")
            return abort(context, failure)

        behaviour.experimental_thread_pool = pool  # type: ignore[attr-defined]
        return grpc.stream_unary_rpc_method_handler(behaviour)


def parse_message(serialized: bytes | None, message: type[Message]) -> Message:
    """Parse what a client sent.

    Raises:
        InvalidArgument: It is nothing, or another message.
    """
    if serialized is None:
        raise InvalidArgument(f"expected one {message.DESCRIPTOR.full_name}, got none")
    check_field_count(serialized)
    try:
        return message.FromString(serialized)
    except DecodeError:
        raise InvalidArgument(
            f"expected a serialized {message.DESCRIPTOR.full_name}, got {len(serialized)} bytes that are none"
        ) from None
