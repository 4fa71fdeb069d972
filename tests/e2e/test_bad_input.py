"""What no client should send and no operator should configure; the server says so, and serves on."""

import gzip
import io
import json
import socket
import subprocess
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from contract.grpc.messages import of_arrays, outputs
from contract.http.served import RawAnswer, is_closed, post, read_answer
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from e2e.conftest import Serve
from e2e.deployment import FASHION, fashion_images, write_config, write_fashion
from e2e.server_process import COMMAND, ServerProcess, wait_until

INFER = "/v2/models/identity_fp32/infer"
BODY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}]}'
LIMIT_BYTES = 2**20


@pytest.fixture(autouse=True)
def _server_still_answers(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        server: ServerProcess = request.getfixturevalue("server")
        assert server.http.post(INFER, content=BODY).json()["outputs"][0]["data"] == [1, 2]
        assert "Traceback" not in server.log


def exchange(server: ServerProcess, request: bytes) -> RawAnswer:
    host, port = server.endpoints["http"].rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(request)
        return read_answer(connection)


def check_refusal(answer: Any, status: int, *mentions: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert set(document) == {"error"}
    for mention in mentions:
        assert mention in document["error"]
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"{", {}),
        (BODY[:-1], {}),
        (b"[]", {}),
        (b"null", {}),
        (b'{"inputs": 7}', {}),
        (b'{"inputs": [7]}', {}),
        (b'{"inputs": [{"name": "x"}]}', {}),
        (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1]}]}', {}),
        (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,"two"]}]}', {}),
        (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1.5],"data":[1]}]}', {}),
        (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[NaN]}]}', {}),
        (b"[" * 100_000, {}),
        (b"\xff\xfe\x00", {}),
        (BODY, {"Inference-Header-Content-Length": "500"}),
        (BODY, {"Inference-Header-Content-Length": "-1"}),
        (BODY, {"Inference-Header-Content-Length": "12"}),
        (BODY, {"Content-Encoding": "gzip"}),
        (gzip.compress(BODY, mtime=0)[:-6], {"Content-Encoding": "gzip"}),
        (zlib.compress(BODY)[:-6], {"Content-Encoding": "deflate"}),
    ],
)
def test_malformed_body_is_400(server: ServerProcess, body: bytes, headers: dict[str, str]) -> None:
    check_refusal(server.http.post(INFER, content=body, headers=headers), 400)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v2/models/nobody/infer", 404),
        ("POST", "/v2/models/fashion@int3/infer", 404),
        ("POST", "/v2/models/fashion/versions/9/infer", 404),
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/nobody/ready", 404),
        ("GET", "/v2/models/nobody/tiers", 404),
        ("GET", "/v2/models/fashion@/ready", 400),
        ("GET", "/v2/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", "/", 404),
        ("GET", INFER, 405),
        ("DELETE", "/v2/models/fashion", 405),
    ],
)
def test_unknown_path_or_name_is_refused(server: ServerProcess, method: str, path: str, status: int) -> None:
    check_refusal(server.http.request(method, path, content=BODY if method == "POST" else None), status)


def test_nan_and_infinity_reach_the_model_and_come_back(server: ServerProcess) -> None:
    images = fashion_images(server.folder, 3).copy()
    images[1] = np.nan
    images[2] = np.inf

    (logits,) = outputs(server.stub.ModelInfer(of_arrays("fashion", image=images)))

    # A neighbour that is no number must not reach the row beside it.
    (alone,) = outputs(server.stub.ModelInfer(of_arrays("fashion", image=images[:1])))
    assert np.allclose(logits.array[0], alone.array[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "content_type", "body", "status", "mention"),
    [
        ("fashion", "image/png", b"", 400, "element 0"),
        ("fashion", "image/png", b"no picture", 400, "element 0"),
        ("fashion", "text/plain", b"a boot", 400, "element 0"),
        ("minilm", "text/plain", b"\xff\xfe", 400, "UTF-8"),
        ("identity_fp32", "text/plain", b"a boot", 415, "text/plain"),
    ],
)
def test_plain_body_the_model_cannot_read_is_refused(
    server: ServerProcess, model: str, content_type: str, body: bytes, status: int, mention: str
) -> None:
    answer = server.http.post(f"/v2/models/{model}/infer", content=body, headers={"Content-Type": content_type})

    check_refusal(answer, status, mention)


def test_picture_that_is_cut_short_or_enormous_is_400(server: ServerProcess) -> None:
    boot = (server.folder / "boot.png").read_bytes()
    enormous = io.BytesIO()
    Image.new("L", (20_000, 20_000)).save(enormous, format="PNG")

    for picture, mention in ((boot[: len(boot) // 2], "element 0"), (enormous.getvalue(), "pixels")):
        answer = server.http.post("/v2/models/fashion/infer", content=picture, headers={"Content-Type": "image/png"})
        check_refusal(answer, 400, mention)


def test_token_ids_outside_the_vocabulary_are_400(server: ServerProcess) -> None:
    metadata = server.http.get("/v2/models/minilm@dense").json()
    names = [one["name"] for one in metadata["inputs"] if one["datatype"] == "INT64"]
    ids = {name: np.full((1, 4), 10**9 if name == "input_ids" else 1, dtype=np.int64) for name in names}

    refusal = server.grpc_refusal(of_arrays("minilm", **ids))

    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in refusal.details


def test_grpc_message_of_mixed_contents_is_refused(server: ServerProcess) -> None:
    message = of_arrays("identity_fp32", x=np.ones((1, 2), dtype=np.float32))
    message.inputs[0].contents.fp32_contents.extend([1, 2])

    assert server.grpc_refusal(message).code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def strict_server(fashion_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with little patience and small messages."""
    limits = {"max_request_bytes": LIMIT_BYTES, "body_timeout_seconds": 1}
    config = write_fashion(tmp_path_factory.mktemp("strict"), stored=fashion_store, server=limits)
    with ServerProcess(config) as running:
        yield running.wait_open().wait_ready("fashion")


def test_message_over_the_limit_is_413_and_resource_exhausted(strict_server: ServerProcess) -> None:
    path = "/v2/models/fashion/infer"
    check_refusal(strict_server.http.post(path, content=bytes(LIMIT_BYTES + 1)), 413, str(LIMIT_BYTES))
    assert exchange(strict_server, post(path, b"", length=10**15)).status == 413
    zipped = gzip.compress(bytes(64 * LIMIT_BYTES))
    check_refusal(strict_server.http.post(path, content=zipped, headers={"Content-Encoding": "gzip"}), 413)
    images = np.zeros((400, 1, 28, 28), dtype=np.float32)
    assert strict_server.grpc_refusal(of_arrays("fashion", image=images)).code is grpc.StatusCode.RESOURCE_EXHAUSTED

    strict_server.stub.ModelInfer(of_arrays("fashion", image=images[:300]))


def test_slow_client_is_cut_off_and_others_are_not(strict_server: ServerProcess) -> None:
    host, port = strict_server.endpoints["http"].rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=60) as slow:
        slow.sendall(post("/v2/models/fashion/infer", b"{", length=1000))
        strict_server.stub.ModelInfer(of_arrays("fashion", image=fashion_images(strict_server.folder, 1)))

        answer = read_answer(slow)
        assert answer.status == 408
        assert "within 1 s" in answer.error
        assert is_closed(slow)


def test_clients_that_leave_are_forgotten(strict_server: ServerProcess) -> None:
    body = json.dumps(
        {"inputs": [{"name": "image", "datatype": "FP32", "shape": [64, 1, 28, 28], "data": [0.5] * (64 * 28 * 28)}]}
    ).encode()
    host, port = strict_server.endpoints["http"].rsplit(":", 1)
    for cut in (len(body) // 2, len(body)) * 10:
        with closing(socket.create_connection((host, int(port)), timeout=60)) as leaver:
            leaver.sendall(post("/v2/models/fashion/infer", body[:cut], length=len(body)))

    wait_until(lambda: strict_server.metric("serveprune_requests_in_flight") == 0, what="nothing is in flight any more")
    image = fashion_images(strict_server.folder, 1)
    (logits,) = outputs(strict_server.stub.ModelInfer(of_arrays("fashion", image=image)))
    assert logits.shape == (1, 10)
    assert "Traceback" not in strict_server.log


def test_onnx_file_that_is_cut_short_is_named_before_anything_starts(tmp_path: Path) -> None:
    config = write_fashion(tmp_path)
    network = tmp_path / "fashion.onnx"
    network.write_bytes(network.read_bytes()[:5000])

    finished = _failing_start(config)

    assert "models.fashion" in finished.stderr
    assert "fashion.onnx" in finished.stderr


def test_external_data_outside_the_folder_is_refused(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    folder = tmp_path / "deployment"
    folder.mkdir()
    weight = numpy_helper.from_array(np.zeros((4, 4), dtype=np.float32), "weight")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../secret.bin"), ("offset", "0"), ("length", "64")):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    _write_network(folder / "thief.onnx", helper.make_node("MatMul", ["x", "weight"], ["y"]), weights=[weight])
    config = write_config(folder, models={"thief": {"source": {"onnx": "thief.onnx"}, "tiers": ["dense"]}})

    server = serve(config).wait_open()

    (reason,) = server.wait_state("thief", "dense", "failed")["reasons"]
    assert "../secret.bin" in reason
    assert "inside the model's own folder" in reason
    assert server.stop() == 0


def test_model_with_an_unknown_operator_fails_alone(serve: Serve, fashion_store: Path, tmp_path: Path) -> None:
    models: Mapping[str, Any] = {
        "strange": {"source": {"onnx": "strange.onnx"}, "tiers": ["dense"]},
        "fashion": FASHION,
    }
    config = write_fashion(tmp_path, stored=fashion_store, models=models)
    _write_network(tmp_path / "strange.onnx", helper.make_node("Frobnicate", ["x"], ["y"], domain="example.org"))

    server = serve(config).wait_open().wait_ready("fashion")

    failed = server.wait_state("strange", "dense", "failed")
    assert "Frobnicate" in " ".join(failed["reasons"])
    check_refusal(server.http.post("/v2/models/strange/infer", content=BODY), 409, "failed")
    assert server.http.get("/v2/health/live").status_code == 200
    assert server.http.get("/v2/health/ready").status_code == 503
    server.stub.ModelInfer(of_arrays("fashion@int8", image=fashion_images(tmp_path, 1)))


def _failing_start(config: Path) -> subprocess.CompletedProcess[str]:
    addresses = [word for front in ("http", "grpc", "metrics") for word in (f"--{front}", "127.0.0.1:0")]
    finished = subprocess.run([*COMMAND, "serve", str(config), *addresses], capture_output=True, text=True, timeout=100)
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (config.parent / "store" / "artifacts").exists()
    return finished


def _write_network(file: Path, node: onnx.NodeProto, *, weights: Any = ()) -> None:
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])] for name in "xy")
    graph = helper.make_graph([node], "small", inputs, outputs, list(weights))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("example.org", 1)]
    file.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
