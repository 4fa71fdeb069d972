"""TLS over both protocols, as clients meet it."""

import contextlib
import gzip
import re
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import orjson
import pytest

from contract.certificates import Authority, Issued
from contract.grpc.messages import floats, of_arrays
from contract.http.served import is_closed, post, read_answer
from contract.secured import BODY, INFER, Secured, ask, client_context, eventually, get, numbers, secured
from serveprune.config.security import TlsConfig
from serveprune.frontends.certificates import CERTIFICATE
from serveprune.frontends.grpc.pb import open_inference_pb2 as pb
from serveprune.frontends.watched_files import Reload

ONE = np.ones((1, 1), dtype=np.float32)
PATIENCE_SECONDS = 0.5


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), name="stranger")


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue("server")


@pytest.fixture(scope="module")
def served(issued: Issued) -> Iterator[Secured]:
    with secured(tls=tls_of(issued), body_timeout_seconds=20) as running:
        yield running


def tls_of(issued: Issued, *, client_ca: Path | None = None) -> TlsConfig:
    return TlsConfig(certificate_file=issued.certificate, key_file=issued.key, client_ca_file=client_ca)


def copied(issued: Issued, folder: Path) -> Issued:
    certificate, key = folder / "server.crt", folder / "server.key"
    shutil.copy(issued.certificate, certificate)
    shutil.copy(issued.key, key)
    return Issued(certificate, key)


def serial_of(connection: ssl.SSLSocket) -> str:
    return str((connection.getpeercert() or {})["serialNumber"])


def test_inference_is_answered_over_both_protocols(served: Secured, authority: Authority) -> None:
    with served.connect(authority.certificate) as connection:
        assert numbers(ask(connection)) == [1]
    with served.stub(authority.certificate) as stub:
        assert floats(stub.ModelInfer(of_arrays("identity_fp32", x=ONE))) == [1.0]


def test_connection_is_kept_and_its_later_requests_take_the_short_way(served: Secured, authority: Authority) -> None:
    with served.connect(authority.certificate) as connection:
        for _ in range(5):
            assert numbers(ask(connection)) == [1]
        assert get(connection, "/v2/health/ready").status == 200
        assert numbers(ask(connection)) == [1]


def test_requests_sent_at_once_are_answered_in_order(served: Secured, authority: Authority) -> None:
    with served.connect(authority.certificate) as connection:
        last = post("/v2/nothing", b"x", headers={"Connection": "close"})
        connection.sendall(post(INFER, BODY) * 3 + last)
        # That an end is reached, and no error, says that the server has said it, and not only closed.
        received = b"".join(iter(lambda: connection.recv(65536), b""))

    assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"200"] * 3 + [b"404"]


@pytest.mark.parametrize("rows", [1, 200_000])
@pytest.mark.parametrize("coding", ["chunked", "gzip", "plain"])
def test_bodies_of_every_form_and_size_arrive(served: Secured, authority: Authority, rows: int, coding: str) -> None:
    data = np.arange(rows, dtype=np.float32)
    document = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, rows], "data": data.tolist()}]}
    body = orjson.dumps(document)
    if coding == "chunked":
        pieces = [body[begin : begin + 50_000] for begin in range(0, len(body), 50_000)]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        request = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks
    elif coding == "gzip":
        request = post(INFER, gzip.compress(body), headers={"Content-Encoding": "gzip"})
    else:
        request = post(INFER, body)
    with served.connect(authority.certificate) as connection:
        connection.sendall(request)
        assert numbers(read_answer(connection)) == data.tolist()


def test_request_that_dribbles_in_is_answered(served: Secured, authority: Authority) -> None:
    with served.connect(authority.certificate) as connection:
        for byte in post(INFER, BODY):
            connection.sendall(bytes([byte]))
        assert numbers(read_answer(connection)) == [1]


def test_large_answer_reaches_a_slow_reader_whole_before_the_connection_closes(
    served: Secured, authority: Authority
) -> None:
    rows = 4_000_000
    data = np.arange(rows, dtype=np.float32)
    head = orjson.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": [1, rows],
                    "parameters": {"binary_data_size": data.nbytes},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    )
    headers = {"Inference-Header-Content-Length": str(len(head)), "Connection": "close"}
    with served.connect(authority.certificate) as connection:
        connection.sendall(post(INFER, head + data.tobytes(), headers=headers))
        time.sleep(1)  # for the server to be done with it, and to want to close
        answer = read_answer(connection)
        assert answer.body[int(answer.headers["inference-header-content-length"]) :] == data.tobytes()
        assert connection.recv(1) == b""


@pytest.mark.parametrize("connection_header", ["keep-alive", "close"])
def test_reader_that_stops_in_an_answer_is_cut_off(
    issued: Issued, authority: Authority, connection_header: str
) -> None:
    with secured(tls=tls_of(issued), body_timeout_seconds=PATIENCE_SECONDS) as served:
        rows = 4_000_000
        document = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,%d],"data":[%s]}]}'
        body = document % (rows, b",".join([b"1"] * rows))
        with served.connect(authority.certificate) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(post(INFER, body, headers={"Connection": connection_header}))
            assert eventually(lambda: bool(served.plane.answers))
            assert eventually(lambda: not open_connections(served))


def open_connections(served: Secured) -> int:
    server: Any = served.http._endpoint._server
    return len(server.server_state.connections) + len(server._encrypted.handshakes)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_from_1_2_on_are_spoken_with_forward_secrecy(
    served: Secured, authority: Authority, version: ssl.TLSVersion
) -> None:
    with served.connect(authority.certificate, minimum_version=version, maximum_version=version) as connection:
        assert numbers(ask(connection)) == [1]
        cipher = connection.cipher()
        assert cipher is not None
        assert cipher[0].startswith(("ECDHE-", "TLS_"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_older_versions_and_weak_ciphers_are_not_spoken(served: Secured, authority: Authority) -> None:
    old = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        served.connect(authority.certificate, minimum_version=old, maximum_version=old)

    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES128-GCM-SHA256:ECDHE-ECDSA-AES128-SHA")
    with pytest.raises(ssl.SSLError, match=r"(?i)handshake failure"), served.connect_plain() as plain:
        context.wrap_socket(plain, server_hostname="localhost")


def test_client_that_trusts_another_authority_is_not_talked_into_it(served: Secured, stranger: Authority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        served.connect(stranger.certificate)
    with served.stub(stranger.certificate) as stub, pytest.raises(grpc.RpcError) as refusal:
        stub.ServerLive(pb.ServerLiveRequest(), timeout=5)
    error: Any = refusal.value
    assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_plain_client_is_told_to_speak_tls_and_cut_off(served: Secured) -> None:
    before = len(served.plane.requests)
    with served.connect_plain() as connection:
        connection.sendall(post(INFER, BODY))
        answer = read_answer(connection)
        assert answer.status == 400
        assert "https://" in answer.error
        assert is_closed(connection)
    with served.stub() as stub, pytest.raises(grpc.RpcError):
        stub.ServerLive(pb.ServerLiveRequest(), timeout=5)
    assert len(served.plane.requests) == before


@pytest.mark.parametrize("garbage", [b"\x00\x01\x02", b"\x16\x03\x01\x00\x05hello" + b"\x00" * 40])
def test_garbage_is_cut_off(served: Secured, garbage: bytes) -> None:
    with served.connect_plain() as connection:
        connection.sendall(garbage)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(4096):
                pass
    assert eventually(lambda: open_connections(served) == 0)


def test_handshake_that_never_ends_is_cut_off_within_the_patience(issued: Issued, authority: Authority) -> None:
    with (
        secured(tls=tls_of(issued), body_timeout_seconds=PATIENCE_SECONDS) as served,
        served.connect_plain() as silent,
        served.connect_plain() as hesitant,
    ):
        hesitant.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert is_closed(silent)
        assert is_closed(hesitant)
        assert open_connections(served) == 0
        with served.connect(authority.certificate) as connection:
            assert numbers(ask(connection)) == [1]


def test_grpc_connection_whose_handshake_never_ends_is_cut_off(issued: Issued) -> None:
    with (
        secured(tls=tls_of(issued), body_timeout_seconds=PATIENCE_SECONDS) as served,
        socket.create_connection(served.grpc_address, timeout=20) as silent,
        socket.create_connection(served.grpc_address, timeout=20) as hesitant,
    ):
        hesitant.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert is_closed(silent)
        assert is_closed(hesitant)


def test_handshakes_beyond_the_limit_are_cut_off_and_others_served_later(issued: Issued, authority: Authority) -> None:
    with secured(tls=tls_of(issued), max_connections=2) as served, contextlib.ExitStack() as opened:
        waiting = [opened.enter_context(served.connect_plain()) for _ in range(2)]
        assert eventually(lambda: open_connections(served) == 2)
        assert is_closed(opened.enter_context(served.connect_plain()))
        for each in waiting:
            each.close()
        assert eventually(lambda: open_connections(served) == 0)
        with served.connect(authority.certificate) as connection:
            assert numbers(ask(connection)) == [1]


def test_connection_beyond_the_limit_is_told_so(issued: Issued, authority: Authority) -> None:
    with secured(tls=tls_of(issued), max_connections=1) as served, served.connect(authority.certificate) as first:
        assert numbers(ask(first)) == [1]
        with served.connect(authority.certificate) as second:
            answer = read_answer(second)
            assert answer.status == 503
            assert "server.max_connections" in answer.error
            assert is_closed(second)
        assert numbers(ask(first)) == [1]


def test_stop_does_not_wait_for_idle_clients(issued: Issued, authority: Authority) -> None:
    served = Secured(tls=tls_of(issued))
    with served.connect(authority.certificate) as idle, served.connect_plain():
        assert numbers(ask(idle)) == [1]
        server: Any = served.http._endpoint._server
        served.http.stop(drain_seconds=600)
        assert not server.server_state.connections
        assert is_closed(idle)
    served.close()


def test_client_certificate_is_required_where_authorities_are_named(
    issued: Issued, authority: Authority, stranger: Authority
) -> None:
    known, unknown = stranger.issue("client"), authority.issue("client")
    with secured(tls=tls_of(issued, client_ca=stranger.certificate)) as served:
        with served.connect(authority.certificate, client=known) as connection:
            assert numbers(ask(connection)) == [1]
        with served.stub(authority.certificate, client=known) as stub:
            assert floats(stub.ModelInfer(of_arrays("identity_fp32", x=ONE))) == [1.0]
        for client in (None, unknown):
            with (
                pytest.raises((ssl.SSLError, ConnectionError)),
                served.connect(authority.certificate, client=client) as connection,
            ):
                ask(connection)
            with served.stub(authority.certificate, client=client) as stub, pytest.raises(grpc.RpcError):
                stub.ServerLive(pb.ServerLiveRequest(), timeout=5)
        assert len(served.plane.requests) == 2


def test_client_without_a_certificate_is_told_what_it_lacks(issued: Issued, authority: Authority) -> None:
    with (
        secured(tls=tls_of(issued, client_ca=authority.certificate)) as served,
        pytest.raises(ssl.SSLError, match=r"(?i)certificate required"),
        served.connect(authority.certificate) as connection,
    ):
        connection.recv(1)


def test_changed_certificate_is_taken_up_and_no_connection_dropped(
    issued: Issued, authority: Authority, tmp_path: Path
) -> None:
    files, renewed = copied(issued, tmp_path), authority.issue("renewed", algorithm="rsa")
    with (
        secured(tls=tls_of(files)) as served,
        served.connect(authority.certificate) as old,
        served.stub(authority.certificate) as old_stub,
    ):
        assert numbers(ask(old)) == [1]
        old_stub.ServerLive(pb.ServerLiveRequest())
        shutil.copy(renewed.certificate, files.certificate)
        shutil.copy(renewed.key, files.key)
        served.look()

        assert served.reloads == [(CERTIFICATE, Reload.TAKEN)]
        assert numbers(ask(old)) == [1]
        old_stub.ServerLive(pb.ServerLiveRequest())
        with served.connect(authority.certificate) as new:
            assert numbers(ask(new)) == [1]
            assert serial_of(new) != serial_of(old)
            assert serial_of(new) == grpc_serial(served, authority)


def grpc_serial(served: Secured, authority: Authority) -> str:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(served.grpc_address, timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        return serial_of(connection)


def test_changed_authorities_of_clients_count_for_new_connections(
    issued: Issued, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    client_ca = tmp_path / "clients.crt"
    shutil.copy(authority.certificate, client_ca)
    old, new = authority.issue("old"), stranger.issue("new")
    with secured(tls=tls_of(issued, client_ca=client_ca)) as served:
        with served.connect(authority.certificate, client=old) as connection:
            assert numbers(ask(connection)) == [1]
        shutil.copy(stranger.certificate, client_ca)
        served.look()

        with served.connect(authority.certificate, client=new) as connection:
            assert numbers(ask(connection)) == [1]
        with served.stub(authority.certificate, client=new) as stub:
            assert stub.ServerLive(pb.ServerLiveRequest()).live
        with (
            pytest.raises((ssl.SSLError, ConnectionError)),
            served.connect(authority.certificate, client=old) as connection,
        ):
            ask(connection)
        with served.stub(authority.certificate, client=old) as stub, pytest.raises(grpc.RpcError):
            stub.ServerLive(pb.ServerLiveRequest(), timeout=5)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_old_session_is_not_resumed_when_authorities_of_clients_have_changed(
    issued: Issued, authority: Authority, stranger: Authority, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    client_ca = tmp_path / "clients.crt"
    shutil.copy(authority.certificate, client_ca)
    context = client_context(authority.certificate, client=authority.issue("old"), maximum_version=version)
    with secured(tls=tls_of(issued, client_ca=client_ca)) as served:

        def connect(session: ssl.SSLSession | None) -> ssl.SSLSocket:
            return context.wrap_socket(served.connect_plain(), server_hostname="localhost", session=session)

        with connect(None) as first:
            assert numbers(ask(first)) == [1]
            session = first.session
        with connect(session) as second:
            assert numbers(ask(second)) == [1]
            assert second.session_reused
        shutil.copy(stranger.certificate, client_ca)
        served.look()
        with pytest.raises((ssl.SSLError, ConnectionError)), connect(session) as third:
            ask(third)


@pytest.mark.parametrize("breakage", ["mismatch", "garbage", "gone", "empty"])
def test_broken_new_certificate_keeps_the_old_one(
    issued: Issued,
    authority: Authority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    breakage: str,
) -> None:
    files, other = copied(issued, tmp_path), authority.issue("other")
    with secured(tls=tls_of(files)) as served:
        match breakage:
            case "mismatch":
                shutil.copy(other.certificate, files.certificate)
            case "garbage":
                files.certificate.write_bytes(b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
            case "gone":
                files.key.unlink()
            case "empty":
                files.key.write_bytes(b"")
        served.look()
        assert served.reloads == []
        served.look(times=3)

        assert served.reloads == [(CERTIFICATE, Reload.REFUSED)]
        (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert "the old one stays" in record.getMessage()
        with served.connect(authority.certificate) as connection:
            assert numbers(ask(connection)) == [1]
        with served.stub(authority.certificate) as stub:
            assert stub.ServerLive(pb.ServerLiveRequest()).live

        shutil.copy(other.certificate, files.certificate)
        shutil.copy(other.key, files.key)
        served.look()
        assert served.reloads[-1] == (CERTIFICATE, Reload.TAKEN)


def test_certificate_written_before_its_key_is_no_fault(
    issued: Issued, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files, renewed = copied(issued, tmp_path), authority.issue("halves")
    with secured(tls=tls_of(files)) as served:
        shutil.copy(renewed.certificate, files.certificate)
        served.look()
        shutil.copy(renewed.key, files.key)
        served.look()
        assert served.reloads == [(CERTIFICATE, Reload.TAKEN)]
        assert not [record for record in caplog.records if record.levelname == "ERROR"]
