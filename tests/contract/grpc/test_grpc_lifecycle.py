import threading
import time
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from contract.grpc.conftest import RunningFrontend, Start
from contract.grpc.messages import floats, of_arrays
from contract.numpy_plane import NumpyPlane
from serveprune.config.server import ServerConfig
from serveprune.errors import FailedPrecondition
from serveprune.frontends.grpc.pb import open_inference_pb2 as pb
from serveprune.frontends.grpc.pb.open_inference_pb2_grpc import GRPCInferenceServiceStub
from serveprune.frontends.grpc.server import GrpcFrontend

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SLOW = pb.ModelInferRequest(model_name="slow")


def health(front: RunningFrontend) -> Any:
    return health_pb2_grpc.HealthStub(front.channel)


def probe(front: RunningFrontend, service: str = "") -> int:
    status: int = health(front).Check(health_pb2.HealthCheckRequest(service=service), timeout=20).status
    return status


def test_real_port_is_told_when_any_was_asked_for(front: RunningFrontend) -> None:
    assert front.address.host == "127.0.0.1"
    assert front.address.port > 0


def test_second_server_is_refused_when_the_port_is_taken(front: RunningFrontend, start: Start) -> None:
    with pytest.raises(FailedPrecondition, match=f"server.grpc: cannot listen on {front.address}"):
        start(grpc=str(front.address))

    assert front.stub.ServerLive(pb.ServerLiveRequest()).live is True


def test_stop_is_harmless_when_the_server_never_ran_or_was_stopped(plane: NumpyPlane) -> None:
    frontend = GrpcFrontend(
        plane, plane, config=ServerConfig.model_validate({"grpc": "127.0.0.1:0"}), on_rejected=lambda _: None
    )

    frontend.stop(drain_seconds=0)
    frontend.stop(drain_seconds=0)


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService"])
def test_health_follows_the_readiness_of_the_data_plane(front: RunningFrontend, service: str) -> None:
    assert probe(front, service) == SERVING
    front.plane.is_ready = False
    assert probe(front, service) == NOT_SERVING
    front.plane.is_ready = True
    assert probe(front, service) == SERVING


def test_health_is_not_found_when_the_service_is_unknown(front: RunningFrontend) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        probe(front, "inference.Other")

    error: Any = refusal.value
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "inference.GRPCInferenceService" in error.details()


def test_probes_are_answered_when_every_worker_is_taken(start: Start) -> None:
    front = start(grpc_workers=1)
    running = front.stub.ModelInfer.future(SLOW)
    assert front.plane.entered.wait(20)
    waiting = front.stub.ModelInfer.future(SLOW)

    assert probe(front) == SERVING
    assert front.stub.ServerLive(pb.ServerLiveRequest(), timeout=20).live is True
    assert front.stub.ModelReady(pb.ModelReadyRequest(name="add"), timeout=20).ready is True
    front.plane.release.set()
    assert running.result()
    assert waiting.result()


def test_inference_goes_on_when_half_open_calls_hold_every_worker(start: Start) -> None:
    front = start(grpc_workers=4, body_timeout_seconds=3600)
    infer = front.channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
    half_open = [infer.future(iter(front.plane.release.wait, True)) for _ in range(12)]
    deadline = time.monotonic() + 20
    while len(front.frontend._receiving._since) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)

    with grpc.insecure_channel(str(front.address), options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        one = np.ones((1, 3), np.float32)
        answer = GRPCInferenceServiceStub(channel).ModelInfer(of_arrays("add", a=one, b=one), timeout=60)

    assert floats(answer)[:3] == [2.0, 2.0, 2.0]
    assert "CANCELLED" in front.rejected
    for call in half_open:
        call.cancel()


def test_watcher_is_told_of_every_change_and_of_the_drain(front: RunningFrontend) -> None:
    watch = health(front).Watch(health_pb2.HealthCheckRequest(), timeout=60)

    assert next(watch).status == SERVING
    front.plane.is_ready = False
    assert next(watch).status == NOT_SERVING
    front.plane.is_ready = True
    assert next(watch).status == SERVING
    front.frontend.stop(drain_seconds=20)
    assert [response.status for response in watch] == [NOT_SERVING]


def test_watcher_of_an_unknown_service_is_told_so(front: RunningFrontend) -> None:
    watch = health(front).Watch(health_pb2.HealthCheckRequest(service="inference.Other"), timeout=60)

    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def test_hundred_watchers_leave_room_for_probes(front: RunningFrontend) -> None:
    watches = [health(front).Watch(health_pb2.HealthCheckRequest(), timeout=60) for _ in range(100)]

    assert [next(watch).status for watch in watches] == [SERVING] * 100
    assert probe(front) == SERVING


def test_drain_answers_what_is_in_flight_and_refuses_what_is_new(front: RunningFrontend) -> None:
    running = front.stub.ModelInfer.future(SLOW)
    assert front.plane.entered.wait(20)
    stop = threading.Thread(target=front.frontend.stop, kwargs={"drain_seconds": 60})
    stop.start()

    codes: list[grpc.StatusCode] = []
    deadline = time.monotonic() + 20
    while grpc.StatusCode.UNAVAILABLE not in codes and time.monotonic() < deadline:
        try:
            with grpc.insecure_channel(str(front.address)) as channel:
                GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest(), timeout=3)
        except grpc.RpcError as error:
            refusal: Any = error
            codes.append(refusal.code())

    assert codes[-1] is grpc.StatusCode.UNAVAILABLE
    # gRPC's own answer, or none, to a call that comes between the server's last word and the closing of its port.
    assert set(codes[:-1]) <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert not running.done()
    front.plane.release.set()
    assert running.result().outputs[0].name == "done"
    stop.join(20)
    assert not stop.is_alive()


def test_drain_cancels_what_outlasts_it(front: RunningFrontend) -> None:
    running = front.stub.ModelInfer.future(SLOW)
    assert front.plane.entered.wait(20)

    front.frontend.stop(drain_seconds=0.1)

    assert running.exception(timeout=20).code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)


def test_drain_does_not_wait_for_open_streams(front: RunningFrontend) -> None:
    silence = iter(front.plane.release.wait, True)
    describing = reflection_pb2_grpc.ServerReflectionStub(front.channel).ServerReflectionInfo(silence)
    unknown = health(front).Watch(health_pb2.HealthCheckRequest(service="inference.Other"))
    next(unknown)
    stop = threading.Thread(target=front.frontend.stop, kwargs={"drain_seconds": 3600})

    stop.start()
    stop.join(60)

    assert not stop.is_alive()
    with pytest.raises(grpc.RpcError):
        next(describing)


def test_port_is_free_again_when_the_server_has_stopped(front: RunningFrontend, start: Start) -> None:
    front.frontend.stop(drain_seconds=0)

    assert start(grpc=str(front.address)).stub.ServerLive(pb.ServerLiveRequest()).live is True


def test_reflection_lists_every_service(front: RunningFrontend) -> None:
    (answer,) = _reflect(front, reflection_pb2.ServerReflectionRequest(list_services=""))

    assert {service.name for service in answer.list_services_response.service} == {
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


@pytest.mark.parametrize(
    ("symbol", "message"),
    [
        ("inference.GRPCInferenceService", "ModelInferRequest"),
        ("inference.ModelInferRequest.InferInputTensor", "ModelInferRequest"),
        ("grpc.health.v1.Health", "HealthCheckRequest"),
        ("grpc.reflection.v1alpha.ServerReflection", "ServerReflectionRequest"),
    ],
)
def test_reflection_describes_every_service(front: RunningFrontend, symbol: str, message: str) -> None:
    (answer,) = _reflect(front, reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol))

    files = [
        descriptor_pb2.FileDescriptorProto.FromString(content)
        for content in answer.file_descriptor_response.file_descriptor_proto
    ]
    assert message in [described.name for file in files for described in file.message_type]


def _reflect(front: RunningFrontend, *requests: Any) -> list[Any]:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(front.channel)
    return list(stub.ServerReflectionInfo(iter(requests)))
