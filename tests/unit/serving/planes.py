"""A data plane over sessions that add a constant, and that can be held up."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from serveprune.config.deployment import DeploymentConfig
from serveprune.config.model import ModelConfig
from serveprune.models.instance import BatchSettings, Instance
from serveprune.models.registry import Model, Registry
from serveprune.models.variant import VariantState
from serveprune.observability import metrics as series
from serveprune.observability.metrics import Metrics
from serveprune.oip.answer import Answer
from serveprune.oip.datatype import Datatype
from serveprune.oip.messages import InferenceRequest
from serveprune.oip.tensor import Array, Tensor, TensorSpec
from serveprune.routing.router import Router
from serveprune.scheduling.latency_model import LatencyModel
from serveprune.scheduling.latency_table import LatencyTable
from serveprune.scheduling.scheduler import Scheduler
from serveprune.serving.admission import Admission
from serveprune.serving.dataplane import DataPlane
from serveprune.serving.shadowing import Shadowing


class Adder:
    """A session that adds a constant, and waits to be let go if told to."""

    inputs = (TensorSpec("x", Datatype.FP32, (-1, 2)),)
    outputs = (TensorSpec("y", Datatype.FP32, (-1, 2)),)
    computes_in_caller = True

    def __init__(self, addend: float) -> None:
        self.addend = addend
        self.started, self.let_go = threading.Event(), threading.Event()
        self.let_go.set()
        self.runs = 0

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        self.started.set()
        assert self.let_go.wait(30)
        self.runs += 1
        return [feeds["x"] + np.float32(self.addend)]

    def close(self) -> None:
        return None


class Planes:
    """A data plane over one model whose tier `int8` adds 100 and whose dense tier adds 1."""

    def __init__(
        self,
        *,
        limit: int = 8,
        timeout_seconds: float = 30.0,
        max_rows: int = 8,
        target_latency_ms: float | None = None,
    ) -> None:
        config = ModelConfig.model_validate({"source": {"onnx": "m.onnx"}, "tiers": ["dense", "int8", "lean"]})
        self.model = Model("adder", config, default_tier="dense")
        self.sessions = {"dense": Adder(1), "int8": Adder(100)}
        for tier, session in self.sessions.items():
            instance = Instance(session, identity=("adder", "1", tier), batches=BatchSettings(4))
            instance.warm()
            # It may be held up, so it must not look quick enough to be computed by whoever submits it.
            instance.latency = LatencyModel(LatencyTable({(1, 2): 0.01}))
            self.model.update(tier, state=VariantState.READY, instance=instance)
        self.metrics = Metrics()
        self.skipped_seconds = 0.0
        self.scheduler = Scheduler(executors=1, clock=self.now)
        self.admission = Admission(limit=limit, max_bytes=2**30)
        router = Router(self.scheduler, self.metrics)
        if target_latency_ms is not None:
            router.deploy(self.model, DeploymentConfig(policy="adaptive", target_latency_ms=target_latency_ms))
        self.shadowing = Shadowing(self.metrics, is_calm=lambda: self.scheduler.is_calm, clock=self.now)
        self.dataplane = DataPlane(
            Registry([self.model]),
            router,
            self.scheduler,
            self.admission,
            self.metrics,
            self.shadowing,
            preprocessing_threads=1,
            request_timeout_seconds=timeout_seconds,
            max_request_rows=max_rows,
            clock=self.now,
        )
        self.dataplane.expect(self.model)

    def now(self) -> float:
        """Tell the time, which a test may put forward."""
        return time.monotonic() + self.skipped_seconds

    def count(self, metric: series.Metric, *labels: str) -> float:
        value: float = self.metrics.counter(metric, *labels)._value.get()
        return value

    @property
    def is_at_rest(self) -> bool:
        """Whether every place, use and series is given back."""
        users = [variant.instance._users for variant in self.model.variants.values() if variant.instance]
        in_flight = self.metrics.gauge(series.IN_FLIGHT, "adder", "1")._value.get()
        return (self.admission._admitted, in_flight, *users) == (0, 0, 0, 0)

    def stop(self) -> None:
        for session in self.sessions.values():
            session.let_go.set()
        self.shadowing.stop(timeout_seconds=30)
        self.dataplane.close(drain_seconds=5)
        self.scheduler.stop(drain_seconds=5)


class Words:
    """A preprocessor of which each text becomes a row, and that can be held up or fail."""

    kind: Literal["text"] = "text"
    input = TensorSpec("text", Datatype.BYTES, (-1,))
    targets = ("x",)
    padding: Mapping[str, int] = {}

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls = 0
        self.started, self.let_go = threading.Event(), threading.Event()
        self.let_go.set()

    def __call__(self, values: Sequence[bytes]) -> dict[str, Array]:
        self.calls += 1
        self.started.set()
        assert self.let_go.wait(30)
        if self.error is not None:
            raise self.error
        return {"x": np.zeros((len(values), 2), np.float32)}


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def text_request(*texts: bytes) -> InferenceRequest:
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return InferenceRequest("adder", (Tensor("text", Datatype.BYTES, array),))


def request(model: str = "adder", value: float = 0.0, **fields: object) -> InferenceRequest:
    return InferenceRequest(model, (Tensor.of("x", np.full((1, 2), value, np.float32)),), **fields)  # type: ignore[arg-type]


def occupy(planes: Planes) -> Answer:
    """Keep the only executor busy with a request, so that the next one has to queue."""
    session = planes.sessions["dense"]
    session.let_go.clear()
    session.started.clear()
    held = planes.dataplane.submit(request())
    assert session.started.wait(30)
    return held
