import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Any

import pytest

from serveprune.errors import Cancelled, DeadlineExceeded, NotFound
from serveprune.frontends.http.pending_answer import PendingAnswer
from serveprune.oip.messages import InferenceResponse

ANSWER = InferenceResponse("m", "1", (), "dense", "default")

InFlight = Future[InferenceResponse]


async def connected() -> Mapping[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError("an event nobody sets was set")


async def disconnected() -> Mapping[str, Any]:
    return {"type": "http.disconnect"}


def wait(
    future: InFlight,
    *,
    receive: Callable[[], Awaitable[Mapping[str, Any]]] = connected,
    timeout: float = 30,
    during: Callable[[], object] = lambda: None,
) -> InferenceResponse:
    async def scenario() -> InferenceResponse:
        asyncio.get_running_loop().call_later(0.05, during)
        pending = PendingAnswer(future, receive=receive, timeout_seconds=timeout)
        try:
            return await pending.result()
        finally:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*others, return_exceptions=True)

    return asyncio.run(scenario())


def test_answer_is_returned_when_it_is_there_already() -> None:
    future: InFlight = Future()
    future.set_result(ANSWER)

    assert wait(future) is ANSWER


def test_answer_is_returned_when_it_comes_later() -> None:
    future: InFlight = Future()

    assert wait(future, during=lambda: future.set_result(ANSWER)) is ANSWER


def test_error_is_raised_as_it_came() -> None:
    future: InFlight = Future()

    with pytest.raises(NotFound, match="nobody"):
        wait(future, during=lambda: future.set_exception(NotFound("nobody")))


def test_inference_is_cancelled_when_the_caller_leaves() -> None:
    future: InFlight = Future()

    with pytest.raises(Cancelled, match="the client left"):
        wait(future, receive=disconnected)
    assert future.cancelled()


def test_caller_that_leaves_is_not_waited_for_when_the_inference_cannot_be_cancelled() -> None:
    future: InFlight = Future()
    future.set_running_or_notify_cancel()

    with pytest.raises(Cancelled, match="the client left"):
        wait(future, receive=disconnected)
    future.set_result(ANSWER)


def test_inference_is_cancelled_when_its_time_is_over() -> None:
    future: InFlight = Future()

    with pytest.raises(DeadlineExceeded, match=r"within 0\.01 s"):
        wait(future, timeout=0.01)
    assert future.cancelled()


def test_caller_hears_when_the_server_gave_up() -> None:
    future: InFlight = Future()

    with pytest.raises(Cancelled, match="the server gave"):
        wait(future, during=future.cancel)


def test_inference_is_cancelled_when_the_server_stops() -> None:
    future: InFlight = Future()

    async def scenario() -> None:
        task = asyncio.create_task(PendingAnswer(future, receive=connected, timeout_seconds=30).result())
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scenario())
    assert future.cancelled()
