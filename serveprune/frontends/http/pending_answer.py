import asyncio

from serveprune.errors import Cancelled, DeadlineExceeded, ServePruneError
from serveprune.frontends.http.asgi import Receive
from serveprune.oip.answer import Answer
from serveprune.oip.messages import InferenceResponse

_WATCH_AFTER_SECONDS = 0.02
"""Most answers are there sooner, and watching a connection costs a task."""


class PendingAnswer:
    """One inference in flight; given up when its caller leaves or its time is over."""

    def __init__(self, submitted: Answer, *, receive: Receive, timeout_seconds: float) -> None:
        self._submitted = submitted
        self._receive = receive
        self._timeout_seconds = timeout_seconds
        self._watcher: asyncio.Task[None] | None = None
        self._reason: ServePruneError | None = None

    async def result(self) -> InferenceResponse:
        """Wait for the answer.

        Raises:
            ServePruneError: What the data plane said, ``Cancelled`` when the caller left, or
                ``DeadlineExceeded`` when the data plane did not answer in time.
        """
        if self._submitted.done() and not self._submitted.cancelled():
            return self._submitted.result()
        loop = asyncio.get_running_loop()
        answer = _awaitable(self._submitted, loop)
        watch = loop.call_later(_WATCH_AFTER_SECONDS, self._start_watching, answer)
        deadline = loop.call_later(self._timeout_seconds, self._time_out, answer)
        try:
            return await answer
        except asyncio.CancelledError:
            if self._reason is not None:
                raise self._reason from None
            if answer.cancelled() and not _this_task_is_cancelled():
                raise Cancelled("the server gave this inference up") from None
            raise
        finally:
            watch.cancel()
            deadline.cancel()
            if self._watcher is not None:
                self._watcher.cancel()

    def _start_watching(self, answer: "asyncio.Future[InferenceResponse]") -> None:
        self._watcher = asyncio.create_task(self._watch(answer))

    async def _watch(self, answer: "asyncio.Future[InferenceResponse]") -> None:
        # The body has been read, so nothing but the end of the connection can come.
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._give_up(answer, Cancelled("the client left before it was answered"))

    def _time_out(self, answer: "asyncio.Future[InferenceResponse]") -> None:
        self._give_up(answer, DeadlineExceeded(f"no answer within {self._timeout_seconds:g} s"))

    def _give_up(self, answer: "asyncio.Future[InferenceResponse]", reason: ServePruneError) -> None:
        if not answer.done():
            self._reason = reason
            answer.cancel()


def _this_task_is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _awaitable(answer: Answer, loop: asyncio.AbstractEventLoop) -> "asyncio.Future[InferenceResponse]":
    """Return an answer as a future of an event loop; to cancel it gives the answer up."""
    future: asyncio.Future[InferenceResponse] = loop.create_future()

    def take() -> None:
        if future.done():
            return
        if answer.cancelled():
            future.cancel()
        elif (error := answer.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(answer.result())

    def carry(_: Answer) -> None:
        try:
            loop.call_soon_threadsafe(take)
        except RuntimeError:
            # The loop is closed, and nobody waits any more.
            return

    future.add_done_callback(lambda over: answer.cancel() if over.cancelled() else None)
    answer.add_done_callback(carry)
    return future
