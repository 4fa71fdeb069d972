import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future

import numpy as np
import pytest

from serveprune.config.model import ModelConfig
from serveprune.errors import DeadlineExceeded, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from serveprune.models.instance import Instance
from serveprune.models.registry import Model, Registry
from serveprune.models.variant import VariantState
from serveprune.observability import metrics as series
from serveprune.observability.metrics import Metrics
from serveprune.oip.datatype import Datatype
from serveprune.oip.messages import InferenceRequest, InferenceResponse
from serveprune.oip.tensor import Array, Tensor, TensorSpec
from serveprune.scheduling.scheduler import Scheduler
from serveprune.serving.admission import Admission
from serveprune.serving.dataplane import DataPlane


class Adder:
    """A session that adds a constant, and waits to be let go if told to."""

    inputs = (TensorSpec("x", Datatype.FP32, (-1, 2)),)
    outputs = (TensorSpec("y", Datatype.FP32, (-1, 2)),)

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

    def __init__(self, *, limit: int = 8, timeout_seconds: float = 30.0) -> None:
        config = ModelConfig.model_validate({"source": {"onnx": "m.onnx"}, "tiers": ["dense", "int8", "lean"]})
        self.model = Model("adder", config, default_tier="dense")
        self.sessions = {"dense": Adder(1), "int8": Adder(100)}
        for tier, session in self.sessions.items():
            instance = Instance(session, identity=("adder", "1", tier), max_batch_size=4)
            instance.warm()
            self.model.update(tier, state=VariantState.READY, instance=instance)
        self.metrics = Metrics()
        self.scheduler = Scheduler(executors=1)
        self.admission = Admission(limit=limit)
        self.dataplane = DataPlane(
            Registry({"adder": self.model}),
            self.scheduler,
            self.admission,
            self.metrics,
            preprocessing_threads=1,
            request_timeout_seconds=timeout_seconds,
        )

    def count(self, metric: series.Metric, *labels: str) -> float:
        value: float = self.metrics.counter(metric, *labels)._value.get()
        return value

    def stop(self) -> None:
        for session in self.sessions.values():
            session.let_go.set()
        self.dataplane.close()
        self.scheduler.stop(drain_seconds=5)


@pytest.fixture
def make_planes() -> Iterator[Callable[..., Planes]]:
    made: list[Planes] = []

    def make(**options: float) -> Planes:
        made.append(Planes(**options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for planes in made:
        planes.stop()


def request(model: str = "adder", value: float = 0.0, **fields: object) -> InferenceRequest:
    return InferenceRequest(model, (Tensor.of("x", np.full((1, 2), value, np.float32)),), **fields)  # type: ignore[arg-type]


def occupy(planes: Planes) -> "Future[InferenceResponse]":
    """Keep the only executor busy with a request, so that the next one has to queue."""
    session = planes.sessions["dense"]
    session.let_go.clear()
    session.started.clear()
    held = planes.dataplane.submit(request())
    assert session.started.wait(30)
    return held


def test_answer_comes_from_the_asked_tier_and_says_so(make_planes: Callable[..., Planes]) -> None:
    planes = make_planes()
    answer = planes.dataplane.submit(request("adder@int8", 5.0, id="r1")).result(30)
    assert answer.outputs[0].array.tolist() == [[105.0, 105.0]]
    assert (answer.tier, answer.tier_reason, answer.id, answer.model) == ("int8", "requested", "r1", "adder@int8")
    assert planes.count(series.REQUESTS, "adder", "1", "int8", "OK") == 1
    assert planes.count(series.SERVED_TIER, "adder", "1", "int8", "requested") == 1


def test_answer_comes_from_the_nearest_better_tier_when_the_asked_one_is_not_there_yet(
    make_planes: Callable[..., Planes],
) -> None:
    planes = make_planes()
    answer = planes.dataplane.submit(request("adder@lean")).result(30)
    assert (answer.tier, answer.tier_reason[:9]) == ("int8", "building:")
    assert planes.count(series.REQUESTED_TIER, "adder", "1", "lean") == 1
    with pytest.raises(Unavailable):
        planes.dataplane.submit(request("adder@lean", parameters={"strict_tier": True}))
    assert planes.count(series.REJECTED_REQUESTS, "UNAVAILABLE") == 1


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"model": "nobody"}, NotFound),
        ({"version": "9"}, NotFound),
        ({"model": "adder@huge"}, NotFound),
        ({"model": "adder@int8", "tier": "dense"}, InvalidArgument),
    ],
)
def test_request_is_refused_at_once_and_leaves_no_trace_when_it_cannot_be_routed(
    make_planes: Callable[..., Planes], wrong: dict[str, str], error: type[Exception]
) -> None:
    planes = make_planes(limit=1)
    for _ in range(3):
        with pytest.raises(error):
            planes.dataplane.submit(request(**wrong))  # type: ignore[arg-type]
    planes.dataplane.submit(request()).result(30)


def test_request_fails_and_frees_its_place_when_its_tensors_do_not_fit(make_planes: Callable[..., Planes]) -> None:
    planes = make_planes(limit=1)
    for wrong in (InferenceRequest("adder", ()), request(outputs=("z",))):
        with pytest.raises(InvalidArgument):
            planes.dataplane.submit(wrong).result(30)
    planes.dataplane.submit(request()).result(30)
    assert planes.count(series.REQUESTS, "adder", "1", "dense", "INVALID_ARGUMENT") == 2


def test_request_is_refused_when_the_server_is_full(make_planes: Callable[..., Planes]) -> None:
    planes = make_planes(limit=2)
    planes.sessions["dense"].let_go.clear()
    held = [planes.dataplane.submit(request()) for _ in range(2)]
    with pytest.raises(ResourceExhausted, match="holds 2 requests") as refused:
        planes.dataplane.submit(request())
    assert refused.value.retry_after_seconds == 1.0
    planes.sessions["dense"].let_go.set()
    assert [future.result(30).tier for future in held] == ["dense", "dense"]


def test_request_is_not_computed_when_its_caller_has_left(make_planes: Callable[..., Planes]) -> None:
    planes = make_planes(limit=2)
    warm_runs = planes.sessions["dense"].runs
    held = occupy(planes)
    left = planes.dataplane.submit(request())
    assert left.cancel()
    planes.sessions["dense"].let_go.set()
    held.result(30)
    planes.dataplane.submit(request()).result(30)
    assert planes.sessions["dense"].runs == warm_runs + 2
    assert planes.count(series.REQUESTS, "adder", "1", "dense", "CANCELLED") == 1


def test_request_fails_when_its_deadline_passes_in_the_queue(make_planes: Callable[..., Planes]) -> None:
    planes = make_planes(timeout_seconds=0.02)
    held = occupy(planes)
    late = planes.dataplane.submit(request())
    threading.Event().wait(0.05)
    planes.sessions["dense"].let_go.set()
    held.exception(30)
    assert isinstance(late.exception(30), DeadlineExceeded)


def test_answers_are_never_mixed_up_when_many_ask_for_several_tiers_at_once(
    make_planes: Callable[..., Planes],
) -> None:
    planes = make_planes(limit=400)
    tiers = ("dense", "int8")
    futures = [
        planes.dataplane.submit(request(f"adder@{tiers[number % 2]}", float(number), id=str(number)))
        for number in range(300)
    ]
    for number, future in enumerate(futures):
        answer = future.result(30)
        assert (answer.id, answer.tier) == (str(number), tiers[number % 2])
        assert answer.outputs[0].array[0, 0] == number + planes.sessions[tiers[number % 2]].addend


def test_metadata_and_readiness_speak_of_the_model_or_of_one_tier(make_planes: Callable[..., Planes]) -> None:
    planes = make_planes()
    metadata = planes.dataplane.model_metadata("adder@int8")
    assert (metadata.name, metadata.versions, metadata.properties["tiers"]) == ("adder@int8", ("1",), "dense,int8,lean")
    assert [spec.name for spec in (*metadata.inputs, *metadata.outputs)] == ["x", "y"]
    assert planes.dataplane.model_ready("adder")
    assert not planes.dataplane.model_ready("adder@lean")
    with pytest.raises(NotFound):
        planes.dataplane.model_ready("adder@huge")
