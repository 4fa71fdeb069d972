"""Bounds on connections, metadata and unread answers; and how calls are served where the runtime offers less."""

import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from contract.grpc.conftest import RunningFrontend, Start
from contract.grpc.messages import floats, of_arrays
from contract.grpc.test_grpc_calls import SLOW, eventually, status
from serveprune.frontends.grpc import direct_calls
from serveprune.frontends.grpc.pb import open_inference_pb2 as pb
from serveprune.frontends.grpc.pb.open_inference_pb2_grpc import GRPCInferenceServiceStub

MEBIBYTE = 2**20
OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)
ONE = np.ones((1, 1), dtype=np.float32)


def channel_to(front: RunningFrontend, *options: tuple[str, int]) -> Any:
    return grpc.insecure_channel(str(front.address), options=[OWN_CONNECTION, *options])


def test_connection_over_the_limit_is_refused_and_others_are_undisturbed(start: Start) -> None:
    front = start(max_connections=2)
    assert front.stub.ServerLive(pb.ServerLiveRequest()).live is True
    with channel_to(front) as second, channel_to(front) as third:
        assert GRPCInferenceServiceStub(second).ServerLive(pb.ServerLiveRequest(), timeout=20).live is True
        with pytest.raises(grpc.RpcError) as refusal:
            GRPCInferenceServiceStub(third).ServerLive(pb.ServerLiveRequest(), timeout=20)

        assert status(refusal.value)[0] is grpc.StatusCode.UNAVAILABLE
        assert floats(front.stub.ModelInfer(of_arrays("identity_fp32", x=ONE))) == [1.0]


@pytest.mark.parametrize(("length", "is_refused"), [(1000, False), (5000, True), (500_000, True)])
def test_metadata_over_the_limit_is_refused(start: Start, length: int, is_refused: bool) -> None:
    front = start(max_header_bytes=4096)
    # The client's own limit must not be what is tested.
    generous = (("grpc.max_metadata_size", MEBIBYTE), ("grpc.absolute_max_metadata_size", MEBIBYTE))
    with channel_to(front, *generous) as channel:
        infer = GRPCInferenceServiceStub(channel).ModelInfer
        message, metadata = of_arrays("identity_fp32", x=ONE), (("x-long", "v" * length),)
        if is_refused:
            with pytest.raises(grpc.RpcError) as refusal:
                infer(message, metadata=metadata, timeout=20)
            assert status(refusal.value)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        else:
            assert floats(infer(message, metadata=metadata, timeout=20)) == [1.0]
    assert floats(front.stub.ModelInfer(of_arrays("identity_fp32", x=ONE))) == [1.0]


def test_connection_that_says_nothing_is_closed(start: Start) -> None:
    front = start(body_timeout_seconds=0.5)
    with socket.create_connection(front.address, timeout=20) as silent:
        received = b"".join(iter(lambda: silent.recv(4096), b""))

    # The server's own greeting, perhaps, and then the end.
    assert len(received) < 1000


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def send_within_windows(client: socket.socket, data: bytes) -> None:
    """Send the data of stream 1, no faster than the server's windows allow: more would end the connection."""
    initial = connection = stream = 65_535
    with client.makefile("rb") as frames:
        while data:
            size = min(16_384, connection, stream, len(data))
            if size > 0:
                client.sendall(frame(0, int(size == len(data)), 1, data[:size]))
                data, connection, stream = data[size:], connection - size, stream - size
                continue
            header = frames.read(9)
            kind, is_acknowledgement, of_stream = header[3], header[4], int.from_bytes(header[5:9], "big")
            payload = frames.read(int.from_bytes(header[:3], "big"))
            if kind == 8 and of_stream == 0:
                connection += int.from_bytes(payload, "big")
            elif kind == 8:
                stream += int.from_bytes(payload, "big")
            elif kind == 4 and not is_acknowledgement:
                for setting in range(0, len(payload), 6):
                    if payload[setting : setting + 2] == b"\x00\x04":
                        wanted = int.from_bytes(payload[setting + 2 : setting + 6], "big")
                        stream, initial = stream + wanted - initial, wanted
                # Only from here on does the server reckon with them.
                client.sendall(frame(4, 1, 0, b""))


def test_caller_that_does_not_read_its_answer_is_cut_off(start: Start) -> None:
    front = start(body_timeout_seconds=4, grpc_workers=1)
    x = np.zeros((1, 2**18), dtype=np.float32)
    serialized = of_arrays("identity_fp32", x=x).SerializeToString()
    path = b"/inference.GRPCInferenceService/ModelInfer"
    names = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"x"),
        (b"te", b"trailers"),
    )
    headers = (*names, (b"content-type", b"application/grpc"))
    block = b"".join(b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in headers)
    data = b"\x00" + len(serialized).to_bytes(4, "big") + serialized
    with socket.create_connection(front.address, timeout=20) as client:
        # A window of no bytes at all for whatever the server would send.
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"\x00\x04\x00\x00\x00\x00"))
        client.sendall(frame(1, 4, 1, block))
        send_within_windows(client, data)
        assert eventually(lambda: len(front.plane.requests) == 1)

        # It held the only place.
        assert floats(front.stub.ModelInfer(of_arrays("identity_fp32", x=ONE), timeout=60)) == [1.0]


def test_server_survives_whatever_messages_come(front: RunningFrontend) -> None:
    generator = random.Random(11)
    call = front.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    good = of_arrays("identity_fp32", x=np.ones((1, 64), dtype=np.float32)).SerializeToString()
    call(good)
    before = psutil.Process().memory_info().rss
    codes = set()
    for round_number in range(400):
        message = bytearray(good)
        if round_number % 3 == 0:
            message = bytearray(generator.randbytes(generator.randint(0, 500)))
        elif round_number % 3 == 1:
            for _ in range(generator.randint(1, 6)):
                message[generator.randrange(len(message))] = generator.randrange(256)
        else:
            del message[generator.randrange(len(message)) :]
        try:
            call(bytes(message), timeout=20)
        except grpc.RpcError as error:
            refusal: Any = error
            codes.add(refusal.code())

    allowed = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED}
    assert codes <= allowed
    assert floats(front.stub.ModelInfer(of_arrays("identity_fp32", x=ONE))) == [1.0]
    assert psutil.Process().memory_info().rss - before < 64 * MEBIBYTE


@pytest.mark.parametrize("shape", [[2**40, 1], [2**62, 4], [-1, 1], [1, 2**31]])
def test_declared_shape_allocates_nothing(front: RunningFrontend, shape: list[int]) -> None:
    raw, typed = of_arrays("identity_fp32", x=ONE), of_arrays("identity_fp32", x=ONE)
    typed.ClearField("raw_input_contents")
    typed.inputs[0].contents.fp32_contents.append(1.0)
    for message in (raw, typed):
        message.inputs[0].ClearField("shape")
        message.inputs[0].shape.extend(shape)
        with pytest.raises(grpc.RpcError) as refusal:
            front.stub.ModelInfer(message, timeout=20)
        assert status(refusal.value)[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_call_leaves_nothing_behind(front: RunningFrontend) -> None:
    for _ in range(20):
        front.stub.ModelInfer(of_arrays("identity_fp32", x=ONE), timeout=20)
    for index in range(20):
        left = front.stub.ModelInfer.future(SLOW)
        if index % 2:
            time.sleep(0.01)
        left.cancel()
    front.plane.release.set()

    calls = front.frontend._calls
    assert isinstance(calls, direct_calls.DirectCalls)
    assert eventually(lambda: not calls._active and not calls._answered and not calls._waiting)
    assert eventually(lambda: not front.frontend._receiving._since)


def test_calls_are_served_by_threads_when_the_runtime_offers_no_other_way(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_calls, "_NAMES", ("a_name_of_the_future",))
    front = start()

    def ask(number: int) -> list[Any]:
        return floats(front.stub.ModelInfer(of_arrays("identity_fp32", x=np.full((1, 2), number, np.float32))))

    with ThreadPoolExecutor(50) as callers:
        assert list(callers.map(ask, range(100))) == [[float(number)] * 2 for number in range(100)]
    with pytest.raises(grpc.RpcError) as refusal:
        front.stub.ModelInfer(pb.ModelInferRequest(model_name="nobody"))
    assert status(refusal.value)[0] is grpc.StatusCode.NOT_FOUND


def test_calls_that_come_together_are_submitted_before_any_is_computed(front: RunningFrontend) -> None:
    front.plane.may_submit.clear()
    answers = [front.stub.ModelInfer.future(of_arrays("identity_fp32", x=ONE))]
    assert eventually(lambda: bool(front.plane.requests))
    answers += [front.stub.ModelInfer.future(of_arrays("identity_fp32", x=ONE)) for _ in range(20)]
    time.sleep(0.5)  # for them to arrive
    front.plane.may_submit.set()

    assert [floats(answer.result(20)) for answer in answers] == [[1.0]] * 21
    assert eventually(lambda: sum(front.plane.rounds) == 21)
    assert len(front.plane.rounds) <= 4, front.plane.rounds
