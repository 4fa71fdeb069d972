"""Tokens over both protocols: every way to an inference asks for one, and nothing that probes ask does."""

import asyncio
import gzip
import logging
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import orjson
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from contract.grpc.messages import floats, of_arrays
from contract.http.served import RawAnswer, is_closed, post, read_answer
from contract.secured import BODY, INFER, Secured, ask, bearer, eventually, get, numbers, secured
from serveprune.config.security import TokensConfig
from serveprune.errors import Code
from serveprune.frontends.authorization import TOKENS
from serveprune.frontends.grpc import direct_calls
from serveprune.frontends.grpc.pb import open_inference_pb2 as pb
from serveprune.frontends.grpc.pb.open_inference_pb2_grpc import GRPCInferenceServiceStub
from serveprune.frontends.watched_files import Reload

FIRST, SECOND, STRANGE = "first-token-of-two-0001", "c2Vjb25kLXRva2Vu+/~.==", "nobody-knows-this-token"
ONE = np.ones((1, 1), dtype=np.float32)
ADD = of_arrays("identity_fp32", x=ONE)
LARGE = of_arrays("identity_fp32", x=np.ones((1, 100_000), np.float32))

REFUSED: Mapping[str, dict[str, str]] = {
    "absent": {},
    "wrong": bearer(STRANGE),
    "part of one": bearer(FIRST[:-1]),
    "one and more": bearer(FIRST + "x"),
    "two at once": bearer(f"{FIRST} {SECOND}"),
    "another scheme": {"Authorization": f"Basic {FIRST}"},
    "no scheme": {"Authorization": FIRST},
    "scheme alone": {"Authorization": "Bearer "},
    "empty": {"Authorization": ""},
    "odd bytes": {"Authorization": "Bearer \u00ff\u00fe\u00ff\u00fe\u00ff\u00fe\u00ff\u00fe\u00ff\u00fe"},
    "huge": bearer("a" * 10_000),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(f"# of two teams\n{FIRST}  # the first\n\n{SECOND}\n")
    return file


@pytest.fixture
def served(file: Path) -> Iterator[Secured]:
    with secured(tokens=TokensConfig(file=file)) as running:
        yield running


@pytest.fixture
def connection(served: Secured) -> Iterator[socket.socket]:
    with served.connect_plain() as connection:
        yield connection


@pytest.fixture(params=["direct", "threads"])
def grpc_served(file: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Secured]:
    """Front ends of which the one for gRPC takes calls over from the runtime, or leaves them to its threads."""
    if request.param == "threads":
        monkeypatch.setattr(direct_calls, "_NAMES", ("a_name_of_the_future",))
    with secured(tokens=TokensConfig(file=file)) as running:
        yield running


def is_refusal(answer: RawAnswer) -> bool:
    assert answer.status == 401, answer
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "authorization" in answer.error
    return True


@pytest.mark.parametrize("token", [FIRST, SECOND])
def test_inference_is_answered_with_any_of_the_tokens(connection: socket.socket, token: str) -> None:
    for _ in range(4):
        assert numbers(ask(connection, headers=bearer(token))) == [1]
        assert numbers(ask(connection, headers={"authorization": f"bearer  {token} "})) == [1]


@pytest.mark.parametrize("headers", REFUSED.values(), ids=REFUSED)
def test_inference_is_401_without_one(served: Secured, headers: dict[str, str]) -> None:
    request = post(INFER, BODY, headers=headers).decode().encode("latin-1")
    with served.connect_plain() as connection:
        for _ in range(4):
            connection.sendall(request)
            assert is_refusal(read_answer(connection))
        assert numbers(ask(connection, headers=bearer(FIRST))) == [1]
    assert len(served.plane.requests) == 1
    assert served.rejected == [Code.UNAUTHENTICATED] * 4


def test_token_said_twice_is_refused(connection: socket.socket) -> None:
    request = post(INFER, BODY, headers={"Authorization": f"Bearer {FIRST}", "authorization": f"Bearer {SECOND}"})
    connection.sendall(request)
    assert is_refusal(read_answer(connection))


def request_of_form(form: str, headers: dict[str, str]) -> bytes:
    rows = 100_000
    large = orjson.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, rows], "data": [1.0] * rows}]})
    match form:
        case "small":
            return post(INFER, BODY, headers=headers)
        case "large":
            return post(INFER, large, headers=headers)
        case "gzip":
            return post(INFER, gzip.compress(BODY), headers={**headers, "Content-Encoding": "gzip"})
        case "query":
            return post(f"{INFER}?x=1", BODY, headers=headers)
        case "version":
            return post("/v2/models/identity_fp32/versions/1/infer", BODY, headers=headers)
        case "HTTP/1.0":
            return post(INFER, BODY, headers=headers).replace(b"HTTP/1.1", b"HTTP/1.0")
        case "upgrade":
            return post(INFER, BODY, headers={**headers, "Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c"})
        case "no JSON":
            return post(INFER, b"{", headers=headers)
        case _:
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n{lines}\r\n".encode()
            return head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


FORMS = ("small", "large", "chunked", "gzip", "query", "version", "HTTP/1.0", "upgrade")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_inference_needs_one(served: Secured, form: str) -> None:
    for headers in ({}, bearer(STRANGE)):
        with served.connect_plain() as connection:
            connection.sendall(request_of_form(form, headers))
            assert is_refusal(read_answer(connection))
    assert served.plane.requests == []
    assert served.rejected == [Code.UNAUTHENTICATED] * 2
    with served.connect_plain() as connection:
        connection.sendall(request_of_form(form, bearer(FIRST)))
        assert read_answer(connection).status == 200


def test_body_is_neither_awaited_nor_decoded_without_one(served: Secured) -> None:
    with served.connect_plain() as connection:
        connection.sendall(post(INFER, b"", length=100_000_000, headers={"Expect": "100-continue"}))
        assert is_refusal(read_answer(connection))
    with served.connect_plain() as connection:
        connection.sendall(request_of_form("no JSON", {}))
        assert is_refusal(read_answer(connection))


def test_requests_sent_at_once_are_judged_one_by_one(connection: socket.socket) -> None:
    known, unknown = post(INFER, BODY, headers=bearer(FIRST)), post(INFER, BODY)
    last = post(INFER, BODY, headers={**bearer(FIRST), "Connection": "close"})
    connection.sendall((known + unknown + known + known + unknown) * 3 + last)
    received = b"".join(iter(lambda: connection.recv(65536), b""))

    assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"200", b"401", b"200", b"200", b"401"] * 3 + [b"200"]


@pytest.mark.parametrize(
    ("path", "status"), [("/v2/health/live", 200), ("/v2/health/ready", 200), ("/v2/nothing", 404)]
)
def test_probes_need_none(connection: socket.socket, path: str, status: int) -> None:
    assert get(connection, path).status == status
    assert get(connection, path, headers=bearer(STRANGE)).status == status


@pytest.mark.parametrize("path", ["/v2", "/v2/models/add", "/v2/models/add/ready", "/v2/models/add/tiers"])
def test_what_tells_of_models_needs_one(served: Secured, connection: socket.socket, path: str) -> None:
    assert is_refusal(get(connection, path))
    # Nor does it tell which ones there are.
    assert is_refusal(get(connection, path.replace("add", "nobody")))
    assert get(connection, path, headers=bearer(SECOND)).status == 200
    connection.sendall(post("/v2/repository/index", b""))
    assert is_refusal(read_answer(connection))
    connection.sendall(post("/v2/repository/index", b"", headers=bearer(SECOND)))
    assert read_answer(connection).status == 200
    assert served.rejected == []


def test_changed_tokens_count_at_once_on_open_connections_too(
    served: Secured, connection: socket.socket, file: Path
) -> None:
    """Three times the same head make it one that is not parsed again."""
    for _ in range(4):
        assert numbers(ask(connection, headers=bearer(FIRST))) == [1]
    with served.stub() as stub:
        assert floats(stub.ModelInfer(ADD, metadata=said(FIRST))) == [1.0]
        file.write_text(STRANGE)
        served.look()

        assert served.reloads == [(TOKENS, Reload.TAKEN)]
        for _ in range(4):
            assert is_refusal(ask(connection, headers=bearer(FIRST)))
            assert numbers(ask(connection, headers=bearer(STRANGE))) == [1]
        assert floats(stub.ModelInfer(ADD, metadata=said(STRANGE))) == [1.0]
        assert refusal(lambda: stub.ModelInfer(ADD, metadata=said(FIRST)))


@pytest.mark.parametrize("content", ["", "# none yet\n", "short\n", "two words, and a comma\n", None])
def test_broken_new_tokens_keep_the_old_ones(
    served: Secured, connection: socket.socket, file: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    served.look(times=3)

    assert served.reloads == [(TOKENS, Reload.REFUSED)]
    assert numbers(ask(connection, headers=bearer(FIRST))) == [1]
    assert is_refusal(ask(connection, headers=bearer("two")))
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 1
    assert content is None or not content.strip("# ") or content.strip() not in said[0]


def test_tokens_of_the_environment_count_beside_those_of_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVEPRUNE_TEST_TOKENS", f"{STRANGE}\n")
    tokens = TokensConfig(file=file, environment="SERVEPRUNE_TEST_TOKENS")
    with secured(tokens=tokens) as served, served.connect_plain() as connection:
        for token in (FIRST, SECOND, STRANGE):
            assert numbers(ask(connection, headers=bearer(token))) == [1]
        assert is_refusal(ask(connection, headers=bearer("none-of-these-tokens")))


def test_tokens_appear_in_no_log_and_no_answer(
    served: Secured, connection: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answers = [
        ask(connection, headers=bearer(STRANGE)),
        ask(connection, headers=bearer(FIRST)),
        ask(connection, headers=bearer(FIRST), path="/v2/models/broken/infer"),
        ask(connection, headers={"Authorization": STRANGE}),
    ]
    with served.stub() as stub:
        details = [
            refusal(lambda: stub.ModelInfer(ADD, metadata=said(STRANGE))),
            refusal(lambda: stub.ModelInfer(pb.ModelInferRequest(model_name="broken"), metadata=said(FIRST))),
        ]
    everything = repr((answers, details, caplog.text, served._tokens, vars(served.http), served._tokens.current))  # type: ignore[union-attr]
    assert FIRST not in everything
    assert STRANGE not in everything


def said(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def refusal(call: Any) -> str:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    error: Any = raised.value
    return f"{error.code().name}: {error.details()}"


METADATA: Mapping[str, Any] = {
    "absent": None,
    "wrong": said(STRANGE),
    "another scheme": (("authorization", f"Basic {FIRST}"),),
    "no scheme": (("authorization", FIRST),),
    "empty": (("authorization", ""),),
    "twice": (*said(FIRST), *said(SECOND)),
}


@pytest.mark.parametrize("metadata", METADATA.values(), ids=METADATA)
@pytest.mark.parametrize("message", [ADD, LARGE], ids=["small", "large"])
def test_call_is_unauthenticated_without_one(grpc_served: Secured, message: Any, metadata: Any) -> None:
    with grpc_served.stub() as stub:
        for _ in range(3):
            told = refusal(lambda: stub.ModelInfer(message, metadata=metadata))
            assert told.startswith("UNAUTHENTICATED: ")
            assert "authorization" in told
        assert grpc_served.plane.requests == []
        assert grpc_served.rejected == [Code.UNAUTHENTICATED] * 3
        for token in (FIRST, SECOND):
            assert set(floats(stub.ModelInfer(message, metadata=said(token)))) == {1.0}


def test_message_is_not_decoded_without_one(grpc_served: Secured) -> None:
    address = f"127.0.0.1:{grpc_served.grpc_address.port}"
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        for method in ("ModelInfer", "ModelMetadata"):
            call: Any = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
            assert refusal(lambda call=call: call(b"\xff\xff\xff")).startswith("UNAUTHENTICATED")
            told = refusal(lambda call=call: call(b"\xff\xff\xff", metadata=said(FIRST)))
            assert told.startswith("INVALID_ARGUMENT")


def test_many_calls_without_one_are_refused_beside_those_that_are_answered(grpc_served: Secured) -> None:
    def call(number: int) -> str:
        if number % 3:
            return refusal(lambda: stub.ModelInfer(LARGE if number % 2 else ADD)).partition(":")[0]
        return str(floats(stub.ModelInfer(ADD, metadata=said(FIRST)))[0])

    with grpc_served.stub() as stub, ThreadPoolExecutor(30) as callers:
        told = list(callers.map(call, range(300)))
    assert told == ["UNAUTHENTICATED" if number % 3 else "1.0" for number in range(300)]
    assert grpc_served.rejected == [Code.UNAUTHENTICATED] * 200
    calls = grpc_served.grpc._calls
    if isinstance(calls, direct_calls.DirectCalls):
        assert eventually(lambda: not calls._unauthorized)


def test_call_without_one_is_counted_once_whether_its_message_comes_or_not(file: Path) -> None:
    is_over = threading.Event()

    def never() -> Iterator[bytes]:
        is_over.wait(60)
        yield from ()

    with secured(tokens=TokensConfig(file=file), body_timeout_seconds=0.5) as served:
        address = f"127.0.0.1:{served.grpc_address.port}"
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            method: Any = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
            assert refusal(lambda: method(iter(()))).startswith("UNAUTHENTICATED")
            assert eventually(lambda: served.rejected == [Code.UNAUTHENTICATED])
            assert refusal(lambda: method(never())).startswith("CANCELLED")
            is_over.set()
            assert refusal(lambda: method(iter((b"",)))).startswith("UNAUTHENTICATED")
    assert served.rejected == [Code.UNAUTHENTICATED, Code.CANCELLED, Code.UNAUTHENTICATED]


def test_calls_without_one_take_no_place_of_those_that_may(file: Path) -> None:
    """They are many, and none sends its message."""
    is_over = threading.Event()

    def never() -> Iterator[bytes]:
        is_over.wait(60)
        yield from ()

    with secured(tokens=TokensConfig(file=file), grpc_workers=1, max_queued_requests=1) as served:
        address = f"127.0.0.1:{served.grpc_address.port}"
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            method: Any = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
            silent = [method.future(never(), timeout=30) for _ in range(20)]
            answers = [GRPCInferenceServiceStub(channel).ModelInfer(ADD, metadata=said(FIRST)) for _ in range(3)]
            assert [floats(answer) for answer in answers] == [[1.0]] * 3
            for call in silent:
                call.cancel()
            is_over.set()


def test_asyncio_client_is_told_so_each_time(grpc_served: Secured) -> None:
    async def codes() -> list[str]:
        address = f"127.0.0.1:{grpc_served.grpc_address.port}"
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = GRPCInferenceServiceStub(channel)
            found = []
            for _ in range(100):
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await stub.ModelMetadata(pb.ModelMetadataRequest(name="add"))
                found.append(raised.value.code().name)
            return found

    assert asyncio.run(codes()) == ["UNAUTHENTICATED"] * 100


def test_health_and_reflection_need_none(grpc_served: Secured) -> None:
    address = f"127.0.0.1:{grpc_served.grpc_address.port}"
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: Any = GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = list(reflection.ServerReflectionInfo(iter([asked])))
        assert {service.name for service in answer.list_services_response.service} >= {"inference.GRPCInferenceService"}


@pytest.mark.parametrize(
    ("method", "request_message"),
    [
        ("ServerMetadata", pb.ServerMetadataRequest()),
        ("ModelMetadata", pb.ModelMetadataRequest(name="add")),
        ("ModelReady", pb.ModelReadyRequest(name="add")),
        ("RepositoryIndex", pb.RepositoryIndexRequest()),
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="add")),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="add")),
    ],
)
def test_methods_that_tell_of_models_need_one(grpc_served: Secured, method: str, request_message: Any) -> None:
    with grpc_served.stub() as stub:
        call = getattr(stub, method)
        assert refusal(lambda: call(request_message)).startswith("UNAUTHENTICATED")
        call(request_message, metadata=said(FIRST))


def test_connection_closes_when_a_refused_body_never_ends(file: Path) -> None:
    with (
        secured(tokens=TokensConfig(file=file), body_timeout_seconds=0.5) as served,
        served.connect_plain() as connection,
    ):
        connection.sendall(post(INFER, b"{", length=1000))
        assert is_refusal(read_answer(connection))
        assert is_closed(connection)
