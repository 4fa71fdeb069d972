import gc
import time
import weakref
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from unit.serving.planes import Adder, Planes, Words, eventually, occupy, request, text_request

from serveprune.errors import (
    Code,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from serveprune.models.instance import BatchSettings, Instance
from serveprune.models.variant import VariantState
from serveprune.observability import metrics as series
from serveprune.oip.messages import InferenceRequest
from serveprune.oip.tensor import Array, Tensor
from serveprune.routing.route import RouteReason


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
        planes.dataplane.submit(request("adder@lean", parameters={"strict_tier": True})).result(30)
    assert planes.count(series.REQUESTS, "adder", "1", "lean", "UNAVAILABLE") == 1


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


def test_adaptive_deployment_answers_with_a_tier_of_its_choice_and_says_so(make_planes: Callable[..., Planes]) -> None:
    planes = make_planes(target_latency_ms=60_000.0)
    answer = planes.dataplane.submit(request()).result(30)
    assert (answer.tier, answer.tier_reason[:9]) == ("dense", "adaptive:")
    assert planes.count(series.SERVED_TIER, "adder", "1", "dense", "adaptive") == 1
    properties = planes.dataplane.model_metadata("adder").properties
    assert properties == {"tiers": "dense,int8,lean", "tier": "dense", "policy": "adaptive"}


@pytest.mark.parametrize(("target_latency_ms", "first"), [(600.0, "dense"), (60_000.0, "int8")])
def test_target_of_a_deployment_orders_the_queue(
    make_planes: Callable[..., Planes], target_latency_ms: float, first: str
) -> None:
    planes = make_planes(target_latency_ms=target_latency_ms)
    order: list[str] = []
    held = occupy(planes)
    waiting = [planes.dataplane.submit(request(model)) for model in ("adder@int8", "adder")]
    for answer in waiting:
        answer.add_done_callback(lambda done: order.append(done.result().tier))
    planes.sessions["dense"].let_go.set()
    held.result(30)
    assert [answer.result(30).tier for answer in waiting] == ["int8", "dense"]
    assert order[0] == first


def test_objective_chooses_the_tier_and_sets_the_deadline(make_planes: Callable[..., Planes]) -> None:
    planes = make_planes()
    met = planes.dataplane.submit(request(parameters={"max_latency_ms": 60_000})).result(30)
    assert (met.tier, met.tier_reason[:10]) == ("dense", "objective:")
    with pytest.raises(InvalidArgument, match="one or the other"):
        planes.dataplane.submit(request("adder@int8", parameters={"max_latency_ms": 60_000})).result(30)
    assert planes.count(series.REQUESTS, "adder", "1", "int8", "INVALID_ARGUMENT") == 1


def test_request_fails_when_its_own_timeout_passes_in_the_queue(make_planes: Callable[..., Planes]) -> None:
    planes = make_planes()
    held = occupy(planes)
    late = planes.dataplane.submit(request(parameters={"timeout": 1}))
    time.sleep(0.01)
    planes.sessions["dense"].let_go.set()
    held.result(30)
    with pytest.raises(DeadlineExceeded):
        late.result(30)


@pytest.mark.parametrize(
    ("parameters", "first"),
    [
        ({"priority": 1}, "int8"),
        ({"priority": 2}, "int8"),  # the other has its deployment's, which is lower
        ({"priority": 3}, "dense"),
        ({"priority": 0}, "dense"),
        ({}, "dense"),
    ],
)
def test_request_is_computed_in_the_order_of_its_priority_or_else_of_its_deployments(
    make_planes: Callable[..., Planes], parameters: dict[str, int], first: str
) -> None:
    planes = make_planes()
    planes.model.priority = 3
    order: list[str] = []
    held = occupy(planes)
    waiting = [
        planes.dataplane.submit(request()),
        planes.dataplane.submit(request("adder@int8", parameters=parameters)),
    ]
    for answer in waiting:
        answer.add_done_callback(lambda done: order.append(done.result().tier))
    planes.sessions["dense"].let_go.set()
    held.result(30)
    assert {answer.result(30).tier for answer in waiting} == {"dense", "int8"}
    assert order[0] == first


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
    planes = make_planes(timeout_seconds=1000.0)
    held = occupy(planes)
    late = planes.dataplane.submit(request())
    planes.skipped_seconds = 1001.0
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


def test_metadata_says_what_runs_the_tier_or_the_one_that_stands_in_for_it(make_planes: Callable[..., Planes]) -> None:
    planes = make_planes()
    planes.model.update("int8", backend="openvino")
    platforms = [planes.dataplane.model_metadata(f"adder@{tier}").platform for tier in ("dense", "int8", "lean")]
    assert platforms == ["onnxruntime_onnx", "openvino_onnx", "onnxruntime_onnx"]


def test_default_tier_decides_whether_a_model_is_ready(make_planes: Callable[..., Planes]) -> None:
    planes = make_planes()
    planes.model.update("dense", state=VariantState.FAILED, instance=None)
    assert not planes.dataplane.model_ready("adder")
    assert not planes.dataplane.ready()
    assert planes.dataplane.model_ready("adder@int8")
    planes.model.default_tier = "lean"
    assert planes.dataplane.model_ready("adder")
    assert planes.dataplane.submit(request()).result(30).tier == "int8"


def test_empty_tier_is_the_same_error_everywhere(make_planes: Callable[..., Planes]) -> None:
    dataplane = make_planes().dataplane
    ask: tuple[Callable[[], object], ...] = (
        lambda: dataplane.submit(request("adder@")),
        lambda: dataplane.model_ready("adder@"),
        lambda: dataplane.model_metadata("adder@"),
    )
    for question in ask:
        with pytest.raises(InvalidArgument, match="model name 'adder@': expected the name of a tier, got an empty one"):
            question()


@pytest.mark.parametrize("rows", [9, 100_000])
def test_request_is_refused_when_it_has_too_many_rows(make_planes: Callable[..., Planes], rows: int) -> None:
    planes = make_planes()
    planes.model.preprocessor = words = Words()
    many = Tensor.of("x", np.zeros((rows, 2), np.float32))
    for refused in (text_request(*[b""] * rows), InferenceRequest("adder", (many,))):
        with pytest.raises(InvalidArgument, match=rf"at most 8 rows .*server\.max_request_rows.*, got {rows}"):
            planes.dataplane.submit(refused).result(30)
    assert words.calls == 0
    assert eventually(lambda: planes.is_at_rest)


def test_request_of_more_rows_than_a_batch_is_answered_whole(make_planes: Callable[..., Planes]) -> None:
    planes = make_planes()
    values = np.arange(14, dtype=np.float32).reshape(7, 2)
    answer = planes.dataplane.submit(InferenceRequest("adder", (Tensor.of("x", values),))).result(30)
    np.testing.assert_array_equal(answer.outputs[0].array, values + 1)


def test_everything_is_given_back_when_preprocessing_fails_unexpectedly(make_planes: Callable[..., Planes]) -> None:
    planes = make_planes(limit=1)
    planes.model.preprocessor = Words(ZeroDivisionError("secret"))
    for _ in range(3):
        with pytest.raises(Internal, match=r"^internal error; see the server's log$"):
            planes.dataplane.submit(text_request(b"a")).result(30)
        assert eventually(lambda: planes.is_at_rest)
    # No tier was chosen yet.
    assert planes.count(series.REQUESTS, "adder", "1", "dense", "INTERNAL") == 3


def test_everything_is_given_back_when_an_answer_cannot_be_made(make_planes: Callable[..., Planes]) -> None:
    class Complex(Adder):
        def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
            return [*super().run(feeds, outputs=outputs), np.zeros(1)]

    planes = make_planes(limit=1)
    planes.model.update(
        "dense", instance=Instance(Complex(1), identity=("adder", "1", "dense"), batches=BatchSettings(4))
    )
    for _ in range(3):
        with pytest.raises(Internal):
            planes.dataplane.submit(request()).result(30)
        assert eventually(lambda: planes.is_at_rest)


def test_request_ends_once_when_its_caller_leaves_during_preprocessing_and_the_server_stops(
    make_planes: Callable[..., Planes],
) -> None:
    planes = make_planes()
    planes.model.preprocessor = words = Words()
    words.let_go.clear()
    left = planes.dataplane.submit(text_request(b"a"))
    assert words.started.wait(30)
    assert left.cancel()
    planes.scheduler.stop(drain_seconds=0)
    words.let_go.set()
    assert planes.dataplane.close(drain_seconds=30)
    assert planes.is_at_rest
    assert planes.count(series.REQUESTS, "adder", "1", "dense", "CANCELLED") == 1


def test_request_leaves_the_queue_when_its_caller_has_left_during_preprocessing(
    make_planes: Callable[..., Planes],
) -> None:
    planes = make_planes()
    occupied = occupy(planes)
    planes.model.preprocessor = words = Words()
    words.let_go.clear()
    left = planes.dataplane.submit(text_request(b"a"))
    assert words.started.wait(30)
    assert left.cancel()
    words.let_go.set()

    assert eventually(lambda: planes.count(series.REQUESTS, "adder", "1", "dense", "CANCELLED") == 1)
    assert len(planes.scheduler._waiting) == 0
    planes.sessions["dense"].let_go.set()
    occupied.result(30)
    assert planes.is_at_rest


def test_close_keeps_its_patience_and_ends_what_waits_for_preprocessing(make_planes: Callable[..., Planes]) -> None:
    planes = make_planes()
    planes.model.preprocessor = words = Words()
    words.let_go.clear()
    running = planes.dataplane.submit(text_request(b"a"))
    assert words.started.wait(30)
    waiting = planes.dataplane.submit(text_request(b"b"))
    assert not planes.dataplane.close(drain_seconds=0.01)
    late = planes.dataplane.submit(text_request(b"c"))
    for refused in (waiting, late):
        error = refused.exception(0)
        assert isinstance(error, Unavailable)
        assert error.retry_after_seconds == 1.0
    planes.scheduler.stop(drain_seconds=0)
    words.let_go.set()
    assert isinstance(running.exception(30), Unavailable)
    assert eventually(lambda: planes.is_at_rest)
    assert words.calls == 1


def test_close_waits_for_what_is_preprocessed(make_planes: Callable[..., Planes]) -> None:
    planes = make_planes()
    planes.model.preprocessor = Words()
    futures = [planes.dataplane.submit(text_request(b"a")) for _ in range(5)]
    assert planes.dataplane.close(drain_seconds=30)
    assert [future.result(30).tier for future in futures] == ["dense"] * 5


def test_giving_up_at_the_deadline_is_counted_as_such(make_planes: Callable[..., Planes]) -> None:
    planes = make_planes(timeout_seconds=1000.0)
    held = occupy(planes)
    late = planes.dataplane.submit(request())
    planes.skipped_seconds = 1001.0
    assert late.cancel()
    planes.sessions["dense"].let_go.set()
    held.exception(30)
    assert planes.count(series.REQUESTS, "adder", "1", "dense", "DEADLINE_EXCEEDED") == 1
    assert planes.count(series.REQUESTS, "adder", "1", "dense", "CANCELLED") == 0


def test_series_that_requests_move_are_there_from_the_start(make_planes: Callable[..., Planes]) -> None:
    registry = make_planes().metrics.registry
    variant = {"model": "adder", "version": "1", "tier": "lean"}
    for code in Code:
        assert registry.get_sample_value("serveprune_rejected_requests_total", {"code": code}) == 0
    for code in ("OK", *Code):
        assert registry.get_sample_value("serveprune_requests_total", {**variant, "code": code}) == 0
    for reason in RouteReason:
        assert registry.get_sample_value("serveprune_served_tier_total", {**variant, "reason": reason}) == 0
    assert registry.get_sample_value("serveprune_requests_in_flight", {"model": "adder", "version": "1"}) == 0
    assert registry.get_sample_value("serveprune_request_preprocessing_seconds_count", variant) == 0


@pytest.mark.parametrize("width", [2, 3])
def test_tensors_are_freed_while_the_answer_is_kept(make_planes: Callable[..., Planes], width: int) -> None:
    planes = make_planes()
    array = np.zeros((1, width), np.float32)
    tensor = weakref.ref(array)
    gc.disable()
    try:
        kept = planes.dataplane.submit(InferenceRequest("adder", (Tensor.of("x", array),)))
        kept.exception(30)
        del array
        planes.dataplane.submit(request()).result(30)
        assert eventually(lambda: tensor() is None)
    finally:
        gc.enable()
