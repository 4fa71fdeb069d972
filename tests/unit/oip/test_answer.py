import logging
import threading
from concurrent.futures import CancelledError

import pytest

from serveprune.errors import NotFound
from serveprune.oip.answer import Answer
from serveprune.oip.messages import InferenceResponse

RESPONSE = InferenceResponse("m", "1", (), "dense", "default")


def test_answer_is_what_was_given_first() -> None:
    answer = Answer()
    assert not answer.done()

    assert answer.set_result(RESPONSE)

    assert (answer.set_result(RESPONSE), answer.set_exception(NotFound("late")), answer.cancel()) == (False,) * 3
    assert (answer.done(), answer.cancelled(), answer.result(), answer.exception()) == (True, False, RESPONSE, None)


def test_failure_is_raised_to_whoever_asks_for_the_answer() -> None:
    answer = Answer()
    error = NotFound("nobody")
    answer.set_exception(error)

    with pytest.raises(NotFound, match="nobody"):
        answer.result()
    assert answer.exception() is error


def test_answer_that_was_given_up_is_never_there() -> None:
    answer = Answer()

    assert answer.cancel()
    assert answer.cancel()

    assert not answer.set_result(RESPONSE)
    assert answer.cancelled()
    with pytest.raises(CancelledError):
        answer.result()


def test_who_waits_gets_the_answer_of_another_thread_or_hears_that_it_did_not_come() -> None:
    answer = Answer()
    with pytest.raises(TimeoutError):
        answer.result(0.01)

    threading.Timer(0.05, answer.set_result, (RESPONSE,)).start()

    assert answer.result(30) is RESPONSE


def test_callbacks_are_told_once_in_order_and_at_once_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    answer = Answer()
    told: list[str] = []
    answer.add_done_callback(lambda over: told.append("a"))
    answer.add_done_callback(lambda over: told.append(str(1 / 0)))
    answer.add_done_callback(lambda over: told.append("c" if over is answer else "another"))

    with caplog.at_level(logging.ERROR):
        answer.set_result(RESPONSE)
    answer.add_done_callback(lambda over: told.append("d"))
    answer.cancel()

    assert told == ["a", "c", "d"]
    assert "ZeroDivisionError" in caplog.text


def test_one_of_many_that_end_an_answer_at_once_does() -> None:
    for _ in range(200):
        answer, told = Answer(), list[Answer]()
        answer.add_done_callback(told.append)
        together = threading.Barrier(3)

        def end(answer: Answer = answer, together: threading.Barrier = together) -> None:
            together.wait()
            answer.set_result(RESPONSE)

        threads = [threading.Thread(target=end) for _ in range(2)]
        for thread in threads:
            thread.start()
        together.wait()
        answer.cancel()
        for thread in threads:
            thread.join()
        assert told == [answer]
