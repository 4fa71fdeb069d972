import logging
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING

from serveprune.errors import Cancelled, Code, DeadlineExceeded, Internal, ServePruneError
from serveprune.frontends.http.arrivals import Arrivals
from serveprune.frontends.http.body import Body
from serveprune.frontends.http.completions import Completions
from serveprune.frontends.http.errors import BodyTimeout
from serveprune.frontends.http.inference import InferenceHandler
from serveprune.frontends.http.observation import answered
from serveprune.frontends.http.reply import Reply, error_reply
from serveprune.frontends.http.request_headers import RequestHeaders
from serveprune.frontends.http.routes import HttpRoute
from serveprune.frontends.observed_request import ObservedRequest
from serveprune.oip.answer import Answer
from serveprune.oip.messages import InferenceRequest, InferenceResponse
from serveprune.oip.output_format import OutputFormat

if TYPE_CHECKING:
    from serveprune.frontends.http.connection import Connection

_log = logging.getLogger(__name__)

_FOR_THE_LOG = (Code.INTERNAL, Code.DATA_LOSS)


class _Unheard:
    """An event nobody waits for."""

    def set(self) -> None:
        pass


class DirectExchange:
    """One inference and its answer, on a connection's own callbacks; uvicorn takes it for a cycle of its own.

    Attributes:
        keep_alive: Whether the connection stays open after the answer.
        response_complete: Whether the answer was sent.
        disconnected: Whether the client has left.
    """

    __slots__ = (
        "_arrivals",
        "_body",
        "_completions",
        "_connection",
        "_deadline",
        "_handler",
        "_headers",
        "_observed",
        "_output_format",
        "_route",
        "_started",
        "_submitted",
        "disconnected",
        "keep_alive",
        "response_complete",
    )

    message_event = _Unheard()

    def __init__(
        self,
        connection: "Connection",
        handler: InferenceHandler,
        arrivals: Arrivals,
        completions: Completions,
        route: HttpRoute,
        headers: RequestHeaders,
        *,
        keep_alive: bool,
        observed: ObservedRequest | None = None,
    ) -> None:
        self._connection = connection
        self._handler = handler
        self._arrivals = arrivals
        self._completions = completions
        self._route = route
        self._headers = headers
        self._observed = observed
        self._deadline = time.monotonic() + handler.timeout_seconds
        self._body: Body = b""
        # An answer keeps its callbacks, and so this exchange, which must not wait for the garbage collector.
        self._submitted: Answer | None = None
        self._started = False
        self._output_format: OutputFormat | None = None
        self.keep_alive = keep_alive
        self.response_complete = self.disconnected = False

    def on_body(self, piece: bytes) -> None:
        """Keep a piece of the body, if the budget has room for it."""
        if self.response_complete:
            return
        try:
            self._handler.budget.take(len(piece))
        except ServePruneError as error:
            self._refuse(error)
            return
        # The common body comes in one piece and is never copied.
        self._body = bytes(self._body) + piece if self._body else piece

    def on_complete(self) -> None:
        """Have the inference started, together with others that come at the same time."""
        if not self.response_complete:
            self._arrivals.add(self._start)

    def _start(self) -> None:
        if self.response_complete or self.disconnected:
            return
        body, self._body = self._body, b""
        try:
            try:
                request, self._output_format = self._handler.decode(body, self._headers, self._route, self._deadline)
            except ServePruneError as error:
                self._refuse(error)
                return
            finally:
                self._handler.budget.give_back(len(body))
            self._started = True
            submitted = self._submitted = self._submit(request, body_bytes=len(body))
        except ServePruneError as error:
            self._fail(error)
            return
        except Exception as error:  # whatever it is, the client gets an answer and the log gets the trace
            self._fail(_unexpected(error))
            return
        self._connection.deadline.set(self._deadline - time.monotonic())
        submitted.add_done_callback(self._done)

    def _submit(self, request: InferenceRequest, *, body_bytes: int) -> Answer:
        observed = self._observed
        if observed is None:
            return self._handler.submit(request, more=True)
        observed.asked(request, size_bytes=body_bytes)
        return self._handler.submit(request, more=True, record=observed.record)

    def time_out(self, *, patience_seconds: float) -> None:
        """End it because the rest of the body, or the answer, did not come in time."""
        if not self._started:
            self._refuse(BodyTimeout(f"expected the whole body within {patience_seconds:g} s; send it faster"))
        else:
            self.give_up(DeadlineExceeded(f"no answer within {self._handler.timeout_seconds:g} s"))

    def give_up(self, reason: ServePruneError) -> None:
        """Answer with an error and spare the inference, if it can still be spared."""
        if self._submitted is not None:
            self._submitted.cancel()
        if not self.response_complete:
            self._fail(reason)

    def abandon(self) -> None:
        """Note that the client has left."""
        self.disconnected = True
        if self._submitted is not None:
            self._submitted.cancel()
        if not self._started and not self.response_complete:
            self._give_body_back()
            self._handler.reject(Code.CANCELLED)
        if self._observed is not None and not self.response_complete:
            self._observed.left()

    def _done(self, submitted: Answer) -> None:
        # In the thread that finished it.
        self._completions.add(self._finish)

    def _finish(self) -> None:
        if self.response_complete or self.disconnected:
            return
        submitted, self._submitted = self._submitted, None
        assert submitted is not None
        self._answer_with(lambda: self._encode(submitted.result()))

    def _encode(self, response: InferenceResponse) -> Reply | None:
        assert self._output_format is not None
        if not self._handler.is_large(response):
            return self._handler.encode(response, self._output_format)
        encoding = self._handler.encode_apart(response, self._output_format)
        encoding.add_done_callback(lambda done: self._completions.add(lambda: self._encoded(done)))
        return None

    def _encoded(self, encoding: "Future[Reply]") -> None:
        if not self.response_complete and not self.disconnected:
            self._answer_with(encoding.result)

    def _answer_with(self, make: Callable[[], Reply | None]) -> None:
        """Send what is made, or why it could not be; ``None`` if it will be there later."""
        try:
            reply = make()
        except CancelledError:
            self._fail(Cancelled("the server gave this inference up"))
        except ServePruneError as error:
            self._fail(error)
        except Exception as error:  # see above
            self._fail(_unexpected(error))
        else:
            if reply is not None:
                self._answer(reply)

    def _refuse(self, error: ServePruneError) -> None:
        """Answer a request that does not reach the data plane, which counts its own refusals."""
        self._give_body_back()
        self._handler.reject(error.code)
        self._fail(error)

    def _give_body_back(self) -> None:
        self._handler.budget.give_back(len(self._body))
        self._body = b""

    def _fail(self, error: ServePruneError) -> None:
        if error.code in _FOR_THE_LOG:
            _log.error("inference of %s: %s", self._route.model, error.message)
        if self._observed is not None:
            self._observed.failed(error)
        self._answer(error_reply(error))

    def _answer(self, reply: Reply) -> None:
        self.response_complete = True
        if self._observed is not None:
            reply = answered(self._observed, reply)
        self._connection.answer(self, reply)


def _unexpected(error: Exception) -> Internal:
    _log.error("an inference failed", exc_info=error)
    return Internal("internal error; see the server's log")
