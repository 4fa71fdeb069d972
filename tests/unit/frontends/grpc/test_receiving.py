from collections.abc import Iterator

import pytest

from serveprune.frontends.grpc.receiving import ReceivingCalls


class Call:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


def test_call_is_cut_off_only_while_its_message_is_overdue() -> None:
    now = 100.0
    calls = ReceivingCalls(timeout_seconds=30, workers=4, clock=lambda: now)
    call = Call()
    seen = []

    def message() -> Iterator[bytes]:
        nonlocal now
        for elapsed in (29.0, 2.0):
            now += elapsed
            calls.cut_off(waiting=0)
            seen.append(call.cancelled)
        yield b"late"

    assert calls.receive(message(), call) == b"late"
    assert seen == [False, True]


def test_call_is_forgotten_when_its_message_is_there() -> None:
    now = 0.0
    calls = ReceivingCalls(timeout_seconds=30, workers=4, clock=lambda: now)
    call = Call()

    assert calls.receive(iter([b"message"]), call) == b"message"
    now = 1000.0
    calls.cut_off(waiting=9)

    assert not call.cancelled


def test_message_is_none_when_the_client_sent_none() -> None:
    assert ReceivingCalls(timeout_seconds=30, workers=4).receive(iter(()), Call()) is None


@pytest.mark.parametrize(
    ("receiving", "waiting", "elapsed", "cut"),
    [
        (4, 0, 2.0, 0),  # nobody needs their workers
        (4, 1, 2.0, 1),
        (4, 9, 2.0, 2),  # half of the four workers are left to them
        (2, 9, 2.0, 0),
        (4, 9, 0.5, 0),  # all have only just begun
    ],
)
def test_oldest_calls_are_cut_off_sooner_when_others_wait_for_their_workers(
    receiving: int, waiting: int, elapsed: float, cut: int
) -> None:
    now = 0.0
    calls = ReceivingCalls(timeout_seconds=30, workers=4, clock=lambda: now)
    contexts = [Call() for _ in range(receiving)]

    def nested(index: int) -> Iterator[bytes]:
        """Receive one call while all those before it still do."""
        nonlocal now
        if index < receiving:
            calls.receive(nested(index + 1), contexts[index])
        else:
            now += elapsed
            calls.cut_off(waiting=waiting)
        yield b""

    next(nested(0))
    assert [context.cancelled for context in contexts] == [True] * cut + [False] * (receiving - cut)
