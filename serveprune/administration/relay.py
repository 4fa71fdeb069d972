"""Calls to the admin API that come another way than over its own ports."""

import asyncio
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from serveprune.administration.http_application import AdminHttpApplication
from serveprune.errors import ResourceExhausted, Unavailable
from serveprune.frontends.http.operator_call import OperatorAnswer, OperatorCall

_WORKERS = 4
_MOST_CALLS = 32
"""In progress or waiting; more are refused."""


class Relay:
    """Hands them to the application that answers over HTTP, so that nothing is judged in another way. Thread-safe."""

    def __init__(self, application: AdminHttpApplication) -> None:
        self._application = application
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="admin-relay")
        self._places = threading.Semaphore(_MOST_CALLS)

    def ask(self, call: OperatorCall) -> "Future[OperatorAnswer]":
        """Begin to answer a call; returns at once.

        Raises:
            ResourceExhausted: Too many are being answered.
            Unavailable: The server is shutting down.
        """
        if not self._places.acquire(blocking=False):
            raise ResourceExhausted(f"more than {_MOST_CALLS} calls to the admin API wait; try again later")
        try:
            future = self._workers.submit(self._run, call)
        except RuntimeError:
            self._places.release()
            raise Unavailable("the server is shutting down", retry_after_seconds=1.0) from None
        future.add_done_callback(lambda _: self._places.release())
        return future

    def stop(self) -> None:
        """Answer no more; idempotent."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _run(self, call: OperatorCall) -> OperatorAnswer:
        # They are rare, so each may have a loop of its own.
        return asyncio.run(self._answer(call))

    async def _answer(self, call: OperatorCall) -> OperatorAnswer:
        sent: list[Mapping[str, Any]] = []

        async def receive() -> Mapping[str, Any]:
            return {"type": "http.request", "body": call.body.encode("latin-1"), "more_body": False}

        async def send(message: Mapping[str, Any]) -> None:
            sent.append(message)

        await self._application(_scope(call), receive, send)
        head, *parts = sent
        headers = tuple(
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in head["headers"]
            if name != b"content-length"
        )
        body = b"".join(bytes(part["body"]) for part in parts)
        return OperatorAnswer(head["status"], headers, body.decode("latin-1"))


def _scope(call: OperatorCall) -> dict[str, Any]:
    return {
        "method": call.method,
        "path": call.path,
        "raw_path": call.path.encode("latin-1"),
        "query_string": call.query.encode("latin-1"),
        "headers": [(b"authorization", value.encode("latin-1")) for value in call.shown],
        "client": call.client,
    }
