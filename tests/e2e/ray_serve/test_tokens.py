"""Tokens on Ray Serve, which change in their file while requests are answered."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import yaml
from contract.grpc.messages import of_arrays

from e2e.graphs import slow_inputs, write_slow_model
from e2e.ray_serve.conftest import import_models
from e2e.ray_serve.hosted import HostedOnRay
from e2e.server_process import wait_until

FORMER, LATER = "an-operators-former-token", "an-operators-later-token"
REQUEST = of_arrays("slow", **slow_inputs(1))


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(f"{FORMER}\n")
    return file


@pytest.fixture
def closed(tokens: Path, tmp_path: Path) -> Iterator[HostedOnRay]:
    write_slow_model(tmp_path / "slow.onnx")
    config = tmp_path / "serveprune.yaml"
    document = {
        "store": {"path": "store"},
        "models": {"slow": {"source": {"onnx": "slow.onnx"}}},
        "server": {"tokens": {"file": str(tokens)}},
    }
    config.write_text(yaml.safe_dump(document))
    scaling = {"*": {"min_replicas": 1, "max_replicas": 1}}
    with HostedOnRay(config, ingress={"num_cpus": 0.5}, autoscaling=scaling) as running:
        import_models(config)
        running.http.headers["Authorization"] = f"Bearer {FORMER}"
        yield running.deploy().wait_running().wait_ready("slow")


def test_token_is_asked_for_and_changes_with_its_file(closed: HostedOnRay, tokens: Path) -> None:
    del closed.http.headers["Authorization"]
    assert _status(closed, None) == 401
    assert _code(closed, None) is grpc.StatusCode.UNAUTHENTICATED
    assert (_status(closed, FORMER), _code(closed, FORMER)) == (200, grpc.StatusCode.OK)
    assert _status(closed, LATER) == 401

    tokens.write_text(f"{LATER}\n")
    wait_until(lambda: _status(closed, LATER) == 200, what="the later token counts")
    assert _code(closed, LATER) is grpc.StatusCode.OK
    assert _status(closed, FORMER) == 401
    assert _code(closed, FORMER) is grpc.StatusCode.UNAUTHENTICATED


def _status(closed: HostedOnRay, token: str | None) -> int:
    shown = {} if token is None else {"Authorization": f"Bearer {token}"}
    return closed.http.get("/v2/models/slow", headers=shown).status_code


def _code(closed: HostedOnRay, token: str | None) -> grpc.StatusCode:
    shown = [] if token is None else [("authorization", f"Bearer {token}")]
    try:
        closed.stub.ModelInfer(REQUEST, metadata=shown)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK
