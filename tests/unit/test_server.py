import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from serveprune.artifacts.store import StoreEvent
from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.config.root import ServePruneConfig
from serveprune.errors import ResourceExhausted, Unavailable
from serveprune.models.instance import BatchSettings, Instance
from serveprune.models.variant import VariantState
from serveprune.oip.datatype import Datatype
from serveprune.oip.messages import InferenceRequest
from serveprune.oip.tensor import Array, Tensor, TensorSpec
from serveprune.scheduling.scheduler import Scheduler
from serveprune.server import Server


class Unending:
    """A preprocessor that is at it until it is let go."""

    kind: Literal["text"] = "text"
    input = TensorSpec("text", Datatype.BYTES, (-1,))
    targets = ("x",)
    padding: Mapping[str, int] = {}

    def __init__(self) -> None:
        self.started, self.let_go = threading.Event(), threading.Event()

    def __call__(self, values: Sequence[bytes]) -> dict[str, Array]:
        self.started.set()
        assert self.let_go.wait(60)
        return {"x": np.zeros((len(values), 4), np.float32)}


def serving(tmp_path: Path, **deployment: float) -> Server:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:])
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    server = Server(
        ServePruneConfig.model_validate(
            {
                "store": {"path": str(tmp_path / "store")},
                "server": {"executors": 1},
                "models": {"relu": {"source": {"onnx": str(path)}}},
                "deployments": {"relu": deployment},
            }
        )
    )
    instance = Instance(OnnxRuntimeBackend().load(path), identity=("relu", "1", "dense"), batches=BatchSettings(4))
    instance.warm()
    server.registry.get("relu").update("dense", state=VariantState.READY, instance=instance)
    return server


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return serving(tmp_path)


def text() -> InferenceRequest:
    return InferenceRequest("relu", (Tensor("text", Datatype.BYTES, np.array([b"a"], dtype=object)),))


def test_stop_keeps_its_patience_and_says_that_something_still_runs(server: Server) -> None:
    server.registry.get("relu").preprocessor = slow = Unending()
    running = server.dataplane.submit(text())
    assert slow.started.wait(30)
    waiting = server.dataplane.submit(text())
    results: list[bool] = []
    stop = threading.Thread(target=lambda: results.append(server.stop(drain_seconds=0.1)))

    stop.start()
    stop.join(30)

    assert results == [False]
    assert isinstance(waiting.exception(0), Unavailable)
    slow.let_go.set()
    assert isinstance(running.exception(30), Unavailable)


def test_stop_answers_what_is_in_flight_and_says_that_nothing_runs(server: Server) -> None:
    server.registry.get("relu").preprocessor = quick = Unending()
    quick.let_go.set()
    answers = [server.dataplane.submit(text()) for _ in range(8)]

    assert server.stop(drain_seconds=60)
    assert [answer.result(0).tier for answer in answers] == ["dense"] * 8


def test_series_of_the_store_and_of_batches_are_there_from_the_start(server: Server) -> None:
    value = server.metrics.registry.get_sample_value
    labels = {"model": "relu", "version": "1", "tier": "dense"}
    assert all(value("serveprune_store_events_total", {"event": event}) == 0 for event in StoreEvent)
    assert value("serveprune_batch_rows_count", labels) == 0
    server.stop(drain_seconds=0)


def test_deployment_sets_the_share_the_priority_and_the_bound_of_its_model(tmp_path: Path) -> None:
    server = serving(tmp_path, share=2, priority=3, max_queued_requests=1)
    model = server.registry.get("relu")
    model.preprocessor = slow = Unending()
    running = server.dataplane.submit(text())
    with pytest.raises(ResourceExhausted, match=r"deployments\.relu\.max_queued_requests"):
        server.dataplane.submit(text())
    assert model.priority == 3
    assert isinstance(server._scheduler, Scheduler)
    assert server._scheduler._share._weights == {"relu": 2.0}
    slow.let_go.set()
    assert running.result(30).tier == "dense"
    server.stop(drain_seconds=0)


@pytest.mark.parametrize(("through_ui", "status"), [(False, 404), (True, 503)])
def test_operators_reach_the_admin_api_through_the_page_only_where_the_config_says_so(
    tmp_path: Path, through_ui: bool, status: int
) -> None:
    admin = {"tokens": {"environment": "OPERATORS"}, "through_ui": through_ui}
    addresses = dict.fromkeys(("http", "grpc", "metrics"), "127.0.0.1:0")
    config = {"store": {"path": str(tmp_path / "store")}, "server": {**addresses, "admin": admin}}
    server = Server(
        ServePruneConfig.model_validate(
            {**config, "models": {"relu": {"source": {"onnx": str(tmp_path / "relu.onnx")}}}}
        )
    )
    endpoints = server.listen()
    try:
        # Nobody has opened the admin API here.
        answer = httpx.get(f"http://{endpoints.http}/ui/admin/config", trust_env=False, timeout=20)
        assert answer.status_code == status
        assert server.overview.document()["operators"] is through_ui
    finally:
        server.stop(drain_seconds=0)
