import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from contract.cases import CHANGES, ChangeCase
from contract.grpc.conftest import RunningFrontend, Start
from contract.grpc.messages import floats, of_arrays
from contract.numpy_plane import SECRET
from serveprune.errors import Code
from serveprune.frontends.grpc.pb import open_inference_pb2 as pb

SLOW = pb.ModelInferRequest(model_name="slow")


def eventually(condition: Any) -> bool:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return bool(condition())


def status(error: Any) -> tuple[grpc.StatusCode, str]:
    return error.code(), error.details()


def test_server_is_live_and_says_whether_it_is_ready(front: RunningFrontend) -> None:
    assert front.stub.ServerLive(pb.ServerLiveRequest()).live is True
    assert front.stub.ServerReady(pb.ServerReadyRequest()).ready is True
    front.plane.is_ready = False
    assert front.stub.ServerReady(pb.ServerReadyRequest()).ready is False


def test_model_readiness_is_told_for_models_and_tiers(front: RunningFrontend) -> None:
    assert front.stub.ModelReady(pb.ModelReadyRequest(name="add@int8", version="1")).ready is True
    assert front.stub.ModelReady(pb.ModelReadyRequest(name="unready")).ready is False
    with pytest.raises(grpc.RpcError) as refusal:
        front.stub.ModelReady(pb.ModelReadyRequest(name="nobody"))
    assert status(refusal.value)[0] is grpc.StatusCode.NOT_FOUND


def test_server_metadata_is_the_data_planes(front: RunningFrontend) -> None:
    metadata = front.stub.ServerMetadata(pb.ServerMetadataRequest())

    assert (metadata.name, metadata.version) == ("numpy-plane", "0.1")
    assert list(metadata.extensions) == ["binary_tensor_data", "model_repository"]


def test_model_metadata_names_shapes_datatypes_and_properties(front: RunningFrontend) -> None:
    metadata = front.stub.ModelMetadata(pb.ModelMetadataRequest(name="add"))

    assert metadata.name == "add"
    assert list(metadata.versions) == ["1"]
    assert metadata.platform == "numpy"
    assert [(spec.name, spec.datatype, list(spec.shape)) for spec in metadata.inputs] == [
        ("a", "FP32", [-1, 3]),
        ("b", "FP32", [-1, 3]),
    ]
    assert [spec.name for spec in metadata.outputs] == ["sum", "difference"]
    assert dict(metadata.properties) == {"tiers": "dense,int8"}


def test_repository_index_leaves_out_what_is_not_ready_when_asked_to(front: RunningFrontend) -> None:
    everything = front.stub.RepositoryIndex(pb.RepositoryIndexRequest())
    ready = front.stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))

    states = {model.name: (model.state, model.reason) for model in everything.models}
    assert states["add"] == ("READY", "")
    assert states["unready"] == ("LOADING", "being imported")
    assert {model.name for model in ready.models} == states.keys() - {"unready"}


def test_repository_index_refuses_the_name_of_another_repository(front: RunningFrontend) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        front.stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="elsewhere"))

    code, details = status(refusal.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "elsewhere" in details


@pytest.mark.parametrize("case", CHANGES, ids=str)
def test_models_are_loaded_and_unloaded_as_the_table_says(front: RunningFrontend, case: ChangeCase) -> None:
    method = {"load": "RepositoryModelLoad", "unload": "RepositoryModelUnload"}[case.action]
    request = getattr(pb, f"{method}Request")(model_name=case.model)
    for name, value in case.parameters.items():
        setattr(request.parameters[name], "bool_param" if isinstance(value, bool) else "string_param", value)
    if case.refusal is None:
        getattr(front.stub, method)(request)
        assert front.plane.changes == [(case.action, case.model)]
        return
    with pytest.raises(grpc.RpcError) as refusal:
        getattr(front.stub, method)(request)

    code, details = status(refusal.value)
    assert code.name == case.refusal
    assert case.mentions in details
    assert SECRET not in details
    assert front.plane.changes == []


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_change_refuses_the_name_of_another_repository(front: RunningFrontend, method: str) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        getattr(front.stub, method)(getattr(pb, f"{method}Request")(model_name="add", repository_name="elsewhere"))

    code, details = status(refusal.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "elsewhere" in details


def test_change_that_takes_long_goes_on_without_its_caller_and_holds_up_no_probe(front: RunningFrontend) -> None:
    loads = [
        front.stub.RepositoryModelLoad.future(pb.RepositoryModelLoadRequest(model_name="lasting")) for _ in range(12)
    ]
    assert front.plane.entered.wait(20)
    assert front.stub.ServerLive(pb.ServerLiveRequest(), timeout=20).live is True
    for call in loads[1:]:
        call.cancel()
    front.plane.release.set()
    loads[0].result(timeout=20)
    assert ("load", "lasting") in front.plane.changes


def test_method_of_another_extension_is_refused_by_name(front: RunningFrontend) -> None:
    statistics = front.channel.unary_unary("/inference.GRPCInferenceService/ModelStatistics")

    with pytest.raises(grpc.RpcError) as refusal:
        statistics(b"")

    code, details = status(refusal.value)
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "ModelStatistics" in details


def test_stream_of_requests_is_refused_by_name_while_it_is_still_open(front: RunningFrontend) -> None:
    stream = front.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    more = threading.Event()

    def messages() -> Iterator[bytes]:
        yield b""
        more.wait(20)

    with pytest.raises(grpc.RpcError) as refusal:
        next(stream(messages()))
    more.set()

    code, details = status(refusal.value)
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "ModelStreamInfer" in details
    assert "one call of ModelInfer" in details


def test_stream_of_requests_is_not_refused_before_its_first_one(front: RunningFrontend) -> None:
    """Python's asyncio client, still about to send it, would report an internal error and not the refusal."""
    stream = front.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    begins = threading.Event()

    def messages() -> Iterator[bytes]:
        begins.wait(20)
        yield b""

    call = stream(messages())
    time.sleep(0.2)
    assert not call.done()
    begins.set()

    assert eventually(call.done)
    assert call.code() is grpc.StatusCode.UNIMPLEMENTED


def test_method_of_another_service_is_left_to_the_runtime(front: RunningFrontend) -> None:
    call = front.channel.unary_unary("/inference.AnotherService/ModelInfer")

    with pytest.raises(grpc.RpcError) as refusal:
        call(b"")

    assert status(refusal.value) == (grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


@pytest.mark.parametrize("method", ["ModelInfer", "ModelReady"])
def test_message_is_refused_when_it_is_no_protobuf(front: RunningFrontend, method: str) -> None:
    call = front.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")

    with pytest.raises(grpc.RpcError) as refusal:
        call(b"\x0a\xff\xff\xff\xff")

    code, details = status(refusal.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"inference.{method}Request" in details
    assert front.rejected == ([Code.INVALID_ARGUMENT] if method == "ModelInfer" else [])


def test_call_is_refused_when_it_has_no_message(front: RunningFrontend) -> None:
    call = front.channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")

    with pytest.raises(grpc.RpcError) as refusal:
        call(iter(()))

    code, details = status(refusal.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "got none" in details


def test_unexpected_failure_is_logged_and_not_shown(front: RunningFrontend, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        front.stub.ModelInfer(pb.ModelInferRequest(model_name="broken"))

    assert status(refusal.value) == (grpc.StatusCode.INTERNAL, "internal error; see the server's log")
    assert SECRET in caplog.text


def test_refusal_arrives_when_it_quotes_a_huge_name(front: RunningFrontend) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        front.stub.ModelInfer(pb.ModelInferRequest(model_name="ü" * 100_000))

    code, details = status(refusal.value)
    assert code is grpc.StatusCode.NOT_FOUND
    assert details.startswith("no model 'üü")
    assert len(details) < 2048


def test_parameters_keep_their_type(front: RunningFrontend) -> None:
    message = of_arrays("identity_fp32", x=np.zeros((1, 1), dtype=np.float32))
    message.parameters["b"].bool_param = True
    message.parameters["i"].int64_param = -(2**63)
    message.parameters["u"].uint64_param = 2**64 - 1
    message.parameters["d"].double_param = 0.1
    message.parameters["s"].string_param = "ü"

    front.stub.ModelInfer(message)

    (request,) = front.plane.requests
    assert request.parameters == {"b": True, "i": -(2**63), "u": 2**64 - 1, "d": 0.1, "s": "ü"}
    assert type(request.parameters["b"]) is bool


def test_tier_is_refused_when_metadata_names_two(front: RunningFrontend) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        front.stub.ModelInfer(SLOW, metadata=(("x-compression-tier", "int8"), ("x-compression-tier", "dense")))

    code, details = status(refusal.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "dense, int8" in details


def test_objective_reaches_the_data_plane_as_metadata(front: RunningFrontend) -> None:
    message = of_arrays("identity_fp32", x=np.ones((1, 1), np.float32))
    front.stub.ModelInfer(message, metadata=(("x-max-latency-ms", "50"), ("x-min-quality", "0.95")))

    (request,) = front.plane.requests
    assert (request.max_latency_ms, request.min_quality) == ("50", "0.95")


def test_deadline_reaches_the_data_plane_on_the_monotonic_clock(front: RunningFrontend) -> None:
    before = time.monotonic()
    front.stub.ModelInfer(of_arrays("identity_fp32", x=np.zeros((1, 1), dtype=np.float32)), timeout=1000)

    (request,) = front.plane.requests
    assert request.deadline is not None
    # gRPC carries it as a duration, rounded, and restores it on another clock.
    assert abs(request.deadline - (before + 1000)) < 30


def test_deadline_is_none_when_the_caller_has_none(front: RunningFrontend) -> None:
    front.stub.ModelInfer(of_arrays("identity_fp32", x=np.zeros((1, 1), dtype=np.float32)))

    assert front.plane.requests[0].deadline is None


def test_inference_is_given_up_when_its_deadline_passes(front: RunningFrontend) -> None:
    running = [front.stub.ModelInfer.future(SLOW) for _ in range(4)]
    # They take all four threads of the plane, so the next one still waits when its time is over.
    assert eventually(lambda: len(front.plane.answers) == 4)

    with pytest.raises(grpc.RpcError) as refusal:
        front.stub.ModelInfer(SLOW, timeout=0.2)

    assert status(refusal.value)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert eventually(lambda: front.plane.answers[-1].cancelled())
    front.plane.release.set()
    assert all(call.result() for call in running)


def test_inference_is_given_up_when_the_server_has_no_more_time(start: Start) -> None:
    front = start(request_timeout_seconds=0.1)

    with pytest.raises(grpc.RpcError) as refusal:
        front.stub.ModelInfer(SLOW)

    code, details = status(refusal.value)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "in time" in details


def test_future_is_cancelled_when_the_caller_leaves(front: RunningFrontend) -> None:
    calls = [front.stub.ModelInfer.future(SLOW) for _ in range(5)]
    # Four are running in the plane's four threads, which nothing can stop; the fifth waits.
    assert eventually(lambda: len(front.plane.answers) == 5)

    for call in calls:
        call.cancel()

    assert eventually(lambda: any(answer.cancelled() for answer in front.plane.answers))


def test_worker_is_free_again_when_the_caller_leaves_a_running_inference(start: Start) -> None:
    front = start(grpc_workers=1)
    call = front.stub.ModelInfer.future(SLOW)
    assert front.plane.entered.wait(20)

    call.cancel()

    x = np.ones((1, 1), dtype=np.float32)
    assert floats(front.stub.ModelInfer(of_arrays("identity_fp32", x=x), timeout=20)) == [1.0]


def test_answers_are_not_mixed_up_when_hundreds_are_in_flight(front: RunningFrontend) -> None:
    def ask(number: int) -> tuple[str, list[Any]]:
        message = of_arrays("identity_fp32", x=np.full((1, number % 7 + 1), number, dtype=np.float32))
        message.id = str(number)
        answer = front.stub.ModelInfer(message)
        return answer.id, floats(answer)

    with ThreadPoolExecutor(300) as callers:
        answers = list(callers.map(ask, range(300)))

    assert answers == [(str(number), [float(number)] * (number % 7 + 1)) for number in range(300)]


def test_large_message_is_answered_when_it_is_below_the_limit(front: RunningFrontend) -> None:
    x = np.arange(16 * 2**20, dtype=np.float32).reshape(4096, 4096)

    answer = front.stub.ModelInfer(of_arrays("identity_fp32", x=x))

    assert np.array_equal(np.frombuffer(answer.raw_output_contents[0], dtype="<f4"), x.ravel())


def test_message_is_refused_when_it_is_over_the_limit(start: Start) -> None:
    front = start(max_request_bytes=100_000)

    with pytest.raises(grpc.RpcError) as refusal:
        front.stub.ModelInfer(of_arrays("identity_fp32", x=np.zeros((1, 25_000), dtype=np.float32)))

    code, details = status(refusal.value)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "100000" in details
    assert front.plane.requests == []


def test_message_is_refused_when_it_is_over_the_limit_only_once_unpacked(start: Start) -> None:
    front = start(max_request_bytes=100_000)
    message = of_arrays("identity_uint8", x=np.zeros((1, 10_000_000), dtype=np.uint8))

    with pytest.raises(grpc.RpcError) as refusal:
        front.stub.ModelInfer(message, compression=grpc.Compression.Gzip)

    assert status(refusal.value)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert front.plane.requests == []


def test_answer_is_refused_when_it_is_over_the_limit(start: Start) -> None:
    front = start(max_request_bytes=2000)
    message = of_arrays("identity_fp32", x=np.zeros((1, 480), dtype=np.float32))
    assert 1920 < message.ByteSize() < 2000

    with pytest.raises(grpc.RpcError) as refusal:
        front.stub.ModelInfer(message)

    code, details = status(refusal.value)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "2000" in details


def test_call_is_refused_at_arrival_when_too_many_wait_for_a_worker(start: Start) -> None:
    front = start(grpc_workers=1, max_queued_requests=2)
    running = front.stub.ModelInfer.future(SLOW)
    assert front.plane.entered.wait(20)
    waiting = [front.stub.ModelInfer.future(SLOW) for _ in range(2)]

    # The calls of one channel arrive in order, but the runtime takes them up in its own time.
    assert eventually(lambda: _refusal(front) is not None)

    refusal = _refusal(front)
    assert refusal is not None
    code, details = status(refusal)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "max_queued_requests" in details
    assert dict(refusal.trailing_metadata())["retry-after"] == "1"
    assert set(front.rejected) == {Code.RESOURCE_EXHAUSTED}
    assert front.stub.ServerReady(pb.ServerReadyRequest(), timeout=20).ready is True
    front.plane.release.set()
    assert all(call.result() for call in (running, *waiting))
    assert front.stub.ModelInfer(SLOW)


def _refusal(front: RunningFrontend) -> Any:
    try:
        front.stub.ModelInfer(SLOW, timeout=0.1)
    except grpc.RpcError as error:
        if status(error)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return error
    return None


def test_client_is_cut_off_when_it_never_sends_its_message(start: Start) -> None:
    front = start(grpc_workers=1, body_timeout_seconds=0.2)
    silence = iter(front.plane.release.wait, True)
    call = front.channel.stream_unary("/inference.GRPCInferenceService/ModelInfer").future(silence, timeout=60)

    x = np.ones((1, 1), dtype=np.float32)
    # It held the only worker.
    assert floats(front.stub.ModelInfer(of_arrays("identity_fp32", x=x), timeout=30)) == [1.0]
    assert call.code() is grpc.StatusCode.CANCELLED


def test_shared_memory_is_refused_with_the_reason(front: RunningFrontend) -> None:
    message = of_arrays("identity_fp32", x=np.zeros((1, 1), dtype=np.float32))
    message.inputs[0].parameters["shared_memory_region"].string_param = "region"

    with pytest.raises(grpc.RpcError) as refusal:
        front.stub.ModelInfer(message)

    code, details = status(refusal.value)
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "shared memory" in details


def test_metadata_reaches_the_data_plane(front: RunningFrontend) -> None:
    request = of_arrays("add", **{name: np.ones((1, 3), np.float32) for name in "ab"})
    front.stub.ModelInfer(request, metadata=(("x-user", "eve"),))
    assert ("x-user", "eve") in [tuple(each) for each in front.plane.requests[-1].headers]
