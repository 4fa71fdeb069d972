from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from serveprune.errors import Unimplemented
from serveprune.frontends.grpc.receiving import ReceivingCalls
from serveprune.frontends.grpc.runtime import HandlerCallDetails, RpcMethodHandler, ServicerContext
from serveprune.frontends.grpc.status import abort

_MAX_NAME_CHARACTERS = 100


class AbsentMethods:
    """Answers calls of methods that other servers of the protocol add to its service: they are not here.

    The runtime would answer them too, without saying which method it means or what to call instead.

    Args:
        service: Full name of the service; methods of others are left to the runtime.
        receiving: Cuts off clients that take too long to send their message.
        pool: Runs the refusals.
    """

    def __init__(self, service: str, *, receiving: ReceivingCalls, pool: ThreadPoolExecutor) -> None:
        self._prefix = f"/{service}/"
        self._receiving = receiving
        self._pool = pool

    def service(self, call: HandlerCallDetails) -> RpcMethodHandler | None:
        """Return the handler for a call that no other handler took; ``None`` for those of other services."""
        if not call.method.startswith(self._prefix):
            return None
        name = call.method.removeprefix(self._prefix)[:_MAX_NAME_CHARACTERS]

        def refuse(messages: Iterator[bytes], context: ServicerContext) -> bytes:
            # Python's asyncio client reports an internal error if its call ends while it still sends the message.
            self._receiving.receive(messages, context)
            abort(
                context,
                Unimplemented(
                    f"{name} belongs to an extension that is not supported; inference is one call of ModelInfer per "
                    "request, and ServerMetadata lists the supported extensions"
                ),
            )

        refuse.experimental_thread_pool = self._pool  # type: ignore[attr-defined]
        # On the wire a call that ends without an answer looks the same whatever kind of method it is.
        return grpc.stream_unary_rpc_method_handler(refuse)
