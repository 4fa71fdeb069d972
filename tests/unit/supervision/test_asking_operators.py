import pytest

from serveprune.errors import Unavailable
from serveprune.frontends.http.operator_call import OperatorAnswer, OperatorCall
from serveprune.supervision.asking_operators import AskingOperators
from serveprune.supervision.messages import OperatorAnswered, OperatorAsked

CALL = OperatorCall("POST", "/admin/rollouts/a/pause", "", ("Bearer a-token-of-operators",), "{}\xff", ("127.0.0.1", 9))


def test_calls_are_handed_on_and_each_gets_its_own_answer() -> None:
    sent: list[OperatorAsked] = []

    def send(message: OperatorAsked) -> bool:
        sent.append(message)
        return True

    asking = AskingOperators(send)
    first, second = asking.ask(CALL), asking.ask(CALL)
    # As it comes out at the other end of the channel.
    assert OperatorAsked.model_validate_json(sent[0].model_dump_json()).call == CALL

    answers = [OperatorAnswer(200, (("content-type", "application/json"),), body) for body in ("one", "two")]
    for message, answer in zip(reversed(sent), answers, strict=True):
        asking.take(OperatorAnswered(number=message.number, answer=answer))

    assert (first.result(0), second.result(0)) == (answers[1], answers[0])
    asking.take(OperatorAnswered(number=sent[0].number, answer=answers[0]))


def test_call_is_unavailable_when_the_supervisor_is_gone_or_says_so() -> None:
    assert isinstance(AskingOperators(lambda message: False).ask(CALL).exception(0), Unavailable)
    asking = AskingOperators(lambda message: True)
    future = asking.ask(CALL)
    asking.take(OperatorAnswered(number=0, message="the admin API is not open yet, or no more"))
    with pytest.raises(Unavailable, match="not open yet"):
        future.result(0)


def test_call_never_shows_its_token() -> None:
    assert "a-token-of-operators" not in repr(CALL)
    assert "a-token-of-operators" not in f"{OperatorAsked(number=1, call=CALL)}"
