import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from serveprune.errors import Cancelled, DeadlineExceeded, NotFound
from serveprune.frontends.http.pending_answer import PendingAnswer
from serveprune.oip.answer import Answer
from serveprune.oip.messages import InferenceResponse

ANSWER = InferenceResponse("m", "1", (), "dense", "default")


async def connected() -> Mapping[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError("an event nobody sets was set")


async def disconnected() -> Mapping[str, Any]:
    return {"type": "http.disconnect"}


def wait(
    answer: Answer,
    *,
    receive: Callable[[], Awaitable[Mapping[str, Any]]] = connected,
    timeout: float = 30,
    during: Callable[[], object] = lambda: None,
) -> InferenceResponse:
    async def scenario() -> InferenceResponse:
        asyncio.get_running_loop().call_later(0.05, during)
        pending = PendingAnswer(answer, receive=receive, timeout_seconds=timeout)
        try:
            return await pending.result()
        finally:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*others, return_exceptions=True)

    return asyncio.run(scenario())


def test_answer_is_returned_when_it_is_there_already() -> None:
    answer = Answer()
    answer.set_result(ANSWER)

    assert wait(answer) is ANSWER


def test_answer_is_returned_when_it_comes_later() -> None:
    answer = Answer()

    assert wait(answer, during=lambda: answer.set_result(ANSWER)) is ANSWER


def test_error_is_raised_as_it_came() -> None:
    answer = Answer()

    with pytest.raises(NotFound, match="nobody"):
        wait(answer, during=lambda: answer.set_exception(NotFound("nobody")))


def test_inference_is_cancelled_when_the_caller_leaves() -> None:
    answer = Answer()

    with pytest.raises(Cancelled, match="the client left"):
        wait(answer, receive=disconnected)
    assert answer.cancelled()


def test_inference_is_cancelled_when_its_time_is_over() -> None:
    answer = Answer()

    with pytest.raises(DeadlineExceeded, match=r"within 0\.01 s"):
        wait(answer, timeout=0.01)
    assert answer.cancelled()


def test_caller_hears_when_the_server_gave_up() -> None:
    answer = Answer()

    with pytest.raises(Cancelled, match="the server gave"):
        wait(answer, during=answer.cancel)


def test_inference_is_cancelled_when_the_server_stops() -> None:
    answer = Answer()

    async def scenario() -> None:
        task = asyncio.create_task(PendingAnswer(answer, receive=connected, timeout_seconds=30).result())
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scenario())
    assert answer.cancelled()
