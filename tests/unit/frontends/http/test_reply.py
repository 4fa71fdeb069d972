import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from serveprune.errors import InvalidArgument
from serveprune.frontends.http.reply import Reply, error_reply


def sent(reply: Reply) -> list[Mapping[str, Any]]:
    messages: list[Mapping[str, Any]] = []

    async def send(message: Mapping[str, Any]) -> None:
        messages.append(message)

    asyncio.run(reply.send(send))
    return messages


@pytest.mark.parametrize(
    ("parts", "writes"),
    [
        ((b"a",), 1),
        ((b"a", memoryview(b"bc"), b""), 1),
        ((b"a", bytes(65536)), 2),
        ((b"a", bytes(65536), b""), 3),
    ],
)
def test_reply_is_whole_and_declares_its_length(parts: tuple[bytes, ...], writes: int) -> None:
    start, *bodies = sent(Reply(200, [(b"x", b"y")], parts))

    body = b"".join(bytes(message["body"]) for message in bodies)
    assert body == b"".join(parts)
    assert start == {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"x", b"y"), (b"content-length", str(len(body)).encode())],
    }
    assert [message.get("more_body", False) for message in bodies] == [True] * (writes - 1) + [False]


def test_error_is_cut_short_when_its_message_quotes_megabytes() -> None:
    reply = error_reply(InvalidArgument("x" * 10**6))

    assert orjson.loads(b"".join(reply.parts)) == {"error": "x" * 4096}
