from collections.abc import Iterator

from serveprune.frontends.grpc.receiving import ReceivingCalls


class Call:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


def test_call_is_cut_off_only_while_its_message_is_overdue() -> None:
    now = 100.0
    calls = ReceivingCalls(timeout_seconds=30, clock=lambda: now)
    call = Call()
    seen = []

    def message() -> Iterator[bytes]:
        nonlocal now
        for elapsed in (29.0, 2.0):
            now += elapsed
            calls.cut_off()
            seen.append(call.cancelled)
        yield b"late"

    assert calls.receive(message(), call) == b"late"
    assert seen == [False, True]


def test_call_is_forgotten_when_its_message_is_there() -> None:
    now = 0.0
    calls = ReceivingCalls(timeout_seconds=30, clock=lambda: now)
    call = Call()

    assert calls.receive(iter([b"message"]), call) == b"message"
    now = 1000.0
    calls.cut_off()

    assert not call.cancelled


def test_message_is_none_when_the_client_sent_none() -> None:
    assert ReceivingCalls(timeout_seconds=30).receive(iter(()), Call()) is None
