"""Requests to the slow model over both protocols, all of them in flight at once."""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
from contract.grpc.messages import of_arrays

from e2e.graphs import SLOW_WIDTH, slow_inputs
from e2e.server_process import wait_until

EXECUTORS = 2
"""How many the servers have that are asked."""

STEPS_OF_A_MOMENT = 2_000


class Asked(Protocol):
    """A server that has the slow model."""

    @property
    def http(self) -> httpx.Client: ...

    @property
    def stub(self) -> Any: ...

    def metric(self, name: str, **labels: str) -> float: ...


def ask_http(server: Asked, steps: int) -> httpx.Response:
    inputs = [
        {"name": name, "datatype": {"i": "INT64", "f": "FP32"}[array.dtype.kind], "shape": array.shape, "data": data}
        for name, array in slow_inputs(steps).items()
        for data in [array.ravel().tolist()]
    ]
    return server.http.post("/v2/models/slow/infer", content=json.dumps({"inputs": inputs}))


def ask_grpc(server: Asked, steps: int) -> bytes:
    return bytes(server.stub.ModelInfer(of_arrays("slow", **slow_inputs(steps))).raw_output_contents[0])


def wait_in_flight(server: Asked, count: int) -> None:
    wait_until(lambda: server.metric("serveprune_requests_in_flight") == count, what=f"{count} requests are in flight")


@dataclass
class InFlight:
    """What will be answered."""

    over_http: list[Future[httpx.Response]] = field(default_factory=list)
    over_grpc: list[Future[bytes]] = field(default_factory=list)

    def check_answered(self) -> None:
        """Wait for all answers; each must be one."""
        assert [answer.result().status_code for answer in self.over_http] == [200] * len(self.over_http)
        assert [len(answer.result()) for answer in self.over_grpc] == [4 * SLOW_WIDTH] * len(self.over_grpc)


@contextmanager
def in_flight(server: Asked, count: int, *, steps_of_the_first: int) -> Iterator[InFlight]:
    """Send requests, half of them over each protocol, and wait until the server has them all.

    The first ones hold all executors, so that all others are still in flight when something happens.
    """
    asked = InFlight()
    with ThreadPoolExecutor(count) as threads:
        for index in range(count):
            steps = steps_of_the_first if index < EXECUTORS else STEPS_OF_A_MOMENT
            if index % 2:
                asked.over_http.append(threads.submit(ask_http, server, steps))
            else:
                asked.over_grpc.append(threads.submit(ask_grpc, server, steps))
            if index < EXECUTORS:
                wait_in_flight(server, index + 1)
        wait_in_flight(server, count)
        yield asked
