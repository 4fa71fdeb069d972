import asyncio
import gzip
import zlib
from collections.abc import Mapping
from typing import Any

import pytest

from serveprune.errors import Cancelled, InvalidArgument, MessageTooLarge, ResourceExhausted
from serveprune.frontends.http.asgi import Receive
from serveprune.frontends.http.body import inflate, read_body
from serveprune.frontends.http.body_budget import BodyBudget
from serveprune.frontends.http.errors import BodyTimeout, UnsupportedMediaType


def chunks(*bodies: bytes, then: str = "end") -> Receive:
    messages = [{"type": "http.request", "body": body, "more_body": True} for body in bodies]
    if then == "end":
        messages[-1]["more_body"] = False
    remaining = iter(messages)

    async def receive() -> Mapping[str, Any]:
        message = next(remaining, None)
        if message is not None:
            return message
        if then == "silence":
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    return receive


def read(
    receive: Receive,
    *,
    declared: int | None = None,
    limit: int = 10,
    timeout: float = 30,
    budget: BodyBudget | None = None,
) -> bytes:
    with (budget or BodyBudget(limit)).share() as take:
        body = read_body(receive, take=take, declared_bytes=declared, max_bytes=limit, timeout_seconds=timeout)
        return bytes(asyncio.run(body))


@pytest.mark.parametrize("bodies", [(b"",), (b"abc",), (b"ab", b"", b"c"), (b"", b"abc"), (b"a", b"b", b"c", b"")])
def test_body_is_read_to_its_end(bodies: tuple[bytes, ...]) -> None:
    assert read(chunks(*bodies)) == b"".join(bodies)


def test_body_may_be_as_large_as_the_limit() -> None:
    assert read(chunks(b"01234", b"56789"), declared=10) == b"0123456789"


def test_body_is_refused_unread_when_it_declares_to_be_too_large() -> None:
    with pytest.raises(MessageTooLarge, match=r"at most 10 bytes.*got 11"):
        read(chunks(then="silence"), declared=11)


def test_body_is_refused_when_it_grows_too_large() -> None:
    with pytest.raises(MessageTooLarge, match="at most 10 bytes"):
        read(chunks(b"012345", b"678901", then="silence"))


def test_body_is_given_up_when_the_client_is_too_slow() -> None:
    with pytest.raises(BodyTimeout, match=r"within 0\.01 s"):
        read(chunks(b"a", then="silence"), timeout=0.01)


def test_body_is_given_up_when_the_client_leaves() -> None:
    with pytest.raises(Cancelled, match="left"):
        read(chunks(b"a", then="disconnect"))


def test_body_is_refused_when_others_hold_the_budget_and_read_when_they_give_it_back() -> None:
    budget = BodyBudget(10)
    with budget.share() as take:
        take(4)
        with pytest.raises(ResourceExhausted, match=r"holds 9 bytes .*server\.max_buffered_bytes: 10") as refused:
            read(chunks(b"01234", b"56", then="silence"), budget=budget)
        assert refused.value.retry_after_seconds == 1.0
        assert read(chunks(b"012345"), budget=budget) == b"012345"
    assert read(chunks(b"0123456789"), budget=budget) == b"0123456789"


RAW = b"0123456789" * 10


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (b"gzip", gzip.compress(RAW, mtime=0)),
        (b"x-gzip", gzip.compress(RAW, mtime=0)),
        (b"deflate", zlib.compress(RAW)),
    ],
)
def test_body_is_inflated(coding: bytes, body: bytes) -> None:
    assert inflate(body, coding=coding, max_bytes=len(RAW)) == RAW


def test_body_stays_as_it_is_without_a_coding() -> None:
    assert inflate(RAW, coding=b"identity", max_bytes=10**6) is RAW


def test_body_is_refused_when_it_inflates_beyond_the_limit() -> None:
    bomb = gzip.compress(bytes(2**26), compresslevel=9)

    with pytest.raises(MessageTooLarge):
        inflate(bomb, coding=b"gzip", max_bytes=2**20)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "ends before"),
        (b"no gzip", "expected gzip"),
        (gzip.compress(RAW, mtime=0)[:-9], "ends before"),
        (gzip.compress(RAW, mtime=0) + b"x", "goes on after"),
        (gzip.compress(RAW, mtime=0)[:-8] + b"\0" * 8, "expected gzip"),
    ],
)
def test_body_is_refused_when_its_coding_is_damaged(body: bytes, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        inflate(body, coding=b"gzip", max_bytes=10**6)


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"gzip, gzip", b"\xff"])
def test_coding_is_refused_when_it_is_unknown(coding: bytes) -> None:
    with pytest.raises(UnsupportedMediaType, match="expected gzip, deflate or identity"):
        inflate(RAW, coding=coding, max_bytes=10**6)
