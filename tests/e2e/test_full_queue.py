"""More requests than the server may hold are refused at once, over both protocols, and told when to come back."""

from pathlib import Path

import grpc
import pytest
from contract.cases import Case, WireTensor
from contract.grpc.messages import of_arrays
from contract.http.messages import json_message, path

from e2e.conftest import Serve
from e2e.deployment import write_slow
from e2e.graphs import slow_inputs
from e2e.server_process import ServerProcess, wait_until

LONG = 200_000_000
"""Steps of some four microseconds: far more than the test waits for."""


@pytest.fixture
def narrow_server(serve: Serve, server: ServerProcess, tmp_path: Path) -> ServerProcess:
    """A server that holds one request; the other server has imported its model already."""
    config = write_slow(tmp_path, stored=server.folder / "store", max_queued_requests=1, drain_seconds=0)
    return serve(config).wait_open().wait_ready("slow")


def test_request_is_refused_with_the_time_to_retry_when_the_queue_is_full(narrow_server: ServerProcess) -> None:
    waiting = narrow_server.stub.ModelInfer.future(of_arrays("slow", **slow_inputs(LONG)))
    wait_until(lambda: narrow_server.metric("serveprune_requests_in_flight") == 1, what="the queue is full")
    case = Case("", "slow", tuple(WireTensor.of(name, array) for name, array in slow_inputs(1).items()))

    body, headers = json_message(case)
    over_http = narrow_server.http.post(path(case), content=body, headers=headers)
    over_grpc = narrow_server.grpc_refusal(of_arrays("slow", **slow_inputs(1)))

    assert over_http.status_code == 429
    assert int(over_http.headers["retry-after"]) >= 1
    assert "max_queued_requests" in over_http.json()["error"]
    assert over_grpc.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(over_grpc.trailing["retry-after"]) >= 1
    assert over_grpc.details == over_http.json()["error"]
    assert narrow_server.metric("serveprune_rejected_requests_total", code="RESOURCE_EXHAUSTED") == 2
    assert not waiting.done()
    waiting.cancel()
