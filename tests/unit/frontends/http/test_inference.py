import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import orjson
import pytest
from contract.numpy_plane import NumpyPlane

from serveprune.config.server import ServerConfig
from serveprune.frontends.http.body_budget import BodyBudget
from serveprune.frontends.http.inference import InferenceHandler
from serveprune.frontends.http.reply import Reply
from serveprune.frontends.http.routes import HttpRoute, Operation
from serveprune.observability.request_record import RequestRecord
from serveprune.oip.answer import Answer
from serveprune.oip.datatype import Datatype
from serveprune.oip.messages import InferenceRequest, InferenceResponse
from serveprune.oip.tensor import Tensor


class CountingPool(ThreadPoolExecutor):
    """A pool that counts what it is given."""

    calls = 0

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> "Future[Any]":
        self.calls += 1
        return super().submit(function, *arguments, **options)


class OneAnswer(NumpyPlane):
    """A data plane that gives the same answer to everything."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def submit(self, request: InferenceRequest, *, more: bool = False, record: RequestRecord | None = None) -> Answer:
        answer = Answer()
        answer.set_result(InferenceResponse(request.model, "1", (self.output,), "dense", "default"))
        return answer


def hops(*, body: bytes, output: Tensor) -> int:
    """Return how often a request, or its answer, was worked on apart from the event loop."""

    async def receive() -> Mapping[str, Any]:
        return {"type": "http.request", "body": body}

    async def answer() -> Reply:
        return await handler.answer(HttpRoute(Operation.INFER, "m"), (), receive)

    plane = OneAnswer(output)
    with CountingPool(1) as pool:
        handler = InferenceHandler(
            plane, config=ServerConfig(), budget=BodyBudget(2**30), workers=pool, on_rejected=lambda code: None
        )
        assert asyncio.run(answer()).status == 200
        plane.close()
        return pool.calls


def json_body(elements: int) -> bytes:
    entry = {"name": "x", "datatype": "INT64", "shape": [elements], "data": [1] * elements}
    return orjson.dumps({"inputs": [entry]})


def of_bytes(elements: int, length: int) -> Tensor:
    array = np.empty(elements, dtype=object)
    array[:] = [b"x" * length] * elements
    return Tensor("y", Datatype.BYTES, array)


SMALL = Tensor.of("y", np.zeros(4, np.float32))


@pytest.mark.parametrize(("elements", "expected"), [(10, 0), (100_000, 1)])
def test_large_bodies_are_decoded_apart_from_the_event_loop(elements: int, expected: int) -> None:
    assert hops(body=json_body(elements), output=SMALL) == expected


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (SMALL, 0),
        (Tensor.of("y", np.zeros(100_000, np.float32)), 1),
        (of_bytes(10, 10), 0),
        (of_bytes(10, 100_000), 1),  # a few pointers to much
        (of_bytes(100_000, 0), 1),
    ],
)
def test_large_answers_are_encoded_apart_from_the_event_loop(output: Tensor, expected: int) -> None:
    assert hops(body=json_body(1), output=output) == expected
