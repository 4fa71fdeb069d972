from typing import Any

import orjson
import pytest

from contract.cases import CHANGES, ChangeCase
from contract.http.served import Served
from contract.numpy_plane import SECRET
from serveprune.errors import Code

ADD = {
    "name": "add",
    "versions": ["1"],
    "platform": "numpy",
    "inputs": [
        {"name": "a", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "b", "datatype": "FP32", "shape": [-1, 3]},
    ],
    "outputs": [
        {"name": "sum", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "difference", "datatype": "FP32", "shape": [-1, 3]},
    ],
    "properties": {"tiers": "dense,int8"},
}
SERVER = {"name": "numpy-plane", "version": "0.1", "extensions": ["binary_tensor_data", "model_repository"]}
STATUS = {Code.UNIMPLEMENTED: 501, Code.FAILED_PRECONDITION: 409, Code.INTERNAL: 500}
TIERS = {"model": "add", "tiers": [{"name": "dense", "state": "READY"}, {"name": "int8", "state": "READY"}]}


@pytest.mark.parametrize(
    ("path", "status", "expected"),
    [
        ("/v2", 200, SERVER),
        ("/v2/", 200, SERVER),
        ("/v2?format=json", 200, SERVER),
        ("/v2/health/live", 200, {"live": True}),
        ("/v2/health/ready", 200, {"ready": True}),
        ("/v2/models/add", 200, ADD),
        ("/v2/models/add/versions/1", 200, ADD),
        ("/v2/models/add@int8", 200, {**ADD, "name": "add@int8"}),
        ("/v2/models/add%40int8", 200, {**ADD, "name": "add@int8"}),
        ("/v2/models/add/ready", 200, {"name": "add", "ready": True}),
        ("/v2/models/add/versions/1/ready", 200, {"name": "add", "ready": True}),
        ("/v2/models/unready/ready", 503, {"name": "unready", "ready": False}),
        ("/v2/models/add/tiers", 200, TIERS),
    ],
)
def test_document_is_answered(served: Served, path: str, status: int, expected: dict[str, Any]) -> None:
    answer = served.client.get(path)

    assert (answer.status_code, answer.json()) == (status, expected)
    assert answer.headers["content-type"] == "application/json"
    assert "server" not in answer.headers


def test_readiness_is_503_while_the_server_is_not_ready(served: Served) -> None:
    served.plane.is_ready = False
    try:
        answer = served.client.get("/v2/health/ready")
    finally:
        served.plane.is_ready = True

    assert (answer.status_code, answer.json()) == (503, {"ready": False})


def test_head_is_answered_without_a_body(served: Served) -> None:
    answer = served.client.head("/v2/health/live")

    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    "path",
    ["/v2/models/nobody", "/v2/models/nobody/ready", "/v2/models/nobody/tiers", "/v2/models/add/versions/9", "/v1"],
)
def test_document_is_404_when_nothing_has_the_name(served: Served, path: str) -> None:
    answer = served.client.get(path)

    assert answer.status_code == 404
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v2/health/live", "GET, HEAD"),
        ("GET", "/v2/models/add/infer", "POST"),
        ("PUT", "/v2/repository/index", "POST"),
    ],
)
def test_method_is_405_with_those_allowed(served: Served, method: str, path: str, allowed: str) -> None:
    answer = served.client.request(method, path)

    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize(("body", "lists_unready"), [(b"", True), (b"{}", True), (b'{"ready": true}', False)])
def test_repository_index_lists_models(served: Served, body: bytes, lists_unready: bool) -> None:
    answer = served.client.post("/v2/repository/index", content=body)

    assert answer.status_code == 200
    entries = {entry["name"]: entry for entry in answer.json()}
    assert entries["add"] == {"name": "add", "version": "1", "state": "READY", "reason": ""}
    assert ("unready" in entries) is lists_unready
    if lists_unready:
        assert entries["unready"]["state"] == "LOADING"
        assert entries["unready"]["reason"] == "being imported"


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"ready": "yes"}'])
def test_repository_index_is_refused_when_its_request_is_wrong(served: Served, body: bytes) -> None:
    answer = served.client.post("/v2/repository/index", content=body)

    assert answer.status_code == 400
    assert "repository index" in answer.json()["error"]


@pytest.mark.parametrize("case", CHANGES, ids=str)
def test_models_are_loaded_and_unloaded_as_the_table_says(served: Served, case: ChangeCase) -> None:
    served.plane.changes.clear()
    body = {"parameters": dict(case.parameters)} if case.parameters else {}
    answer = served.client.post(f"/v2/repository/models/{case.model}/{case.action}", json=body)

    if case.refusal is None:
        assert (answer.status_code, answer.json()) == (200, {})
        assert served.plane.changes == [(case.action, case.model)]
        return
    assert answer.status_code == STATUS[case.refusal]
    assert case.mentions in answer.json()["error"]
    assert SECRET not in answer.text
    assert served.plane.changes == []


@pytest.mark.parametrize(
    ("body", "status"), [(b"", 200), (b"{}", 200), (b"[]", 400), (b"{", 400), (b'{"parameters": [1]}', 400)]
)
def test_body_of_a_load_is_an_object_or_nothing(served: Served, body: bytes, status: int) -> None:
    answer = served.client.post("/v2/repository/models/add/load", content=body)

    assert answer.status_code == status
    assert status == 200 or "repository" in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/repository/models/add/load", 405),
        ("POST", "/v2/repository/models/add", 404),
        ("POST", "/v2/repository/models//load", 404),
        ("POST", "/v2/repository/models/a/b/load", 404),
        ("POST", "/v2/repository/models/add/reload", 404),
    ],
)
def test_path_of_a_change_is_exact(served: Served, method: str, path: str, status: int) -> None:
    assert served.client.request(method, path).status_code == status


@pytest.mark.parametrize("content_type", [None, "application/json", "application/octet-stream", "text/html", "x"])
def test_body_is_json_whatever_it_is_called(served: Served, content_type: str | None) -> None:
    body = orjson.dumps({"inputs": [{"name": "x", "datatype": "INT8", "shape": [1, 1], "data": [5.0]}]})
    headers = {} if content_type is None else {"Content-Type": content_type}

    answer = served.client.post("/v2/models/identity_int8/infer", content=body, headers=headers)

    assert answer.json()["outputs"] == [{"name": "y", "datatype": "INT8", "shape": [1, 1], "data": [5]}]


@pytest.mark.parametrize(
    ("model", "content_type", "body"),
    [
        ("length", "text/plain", b"a text"),
        ("identity_int8", "x", b'{"inputs": [{"name": "x", "datatype": "INT8", "shape": [1, 1], "data": [5]}]}'),
    ],
)
def test_objective_reaches_the_data_plane_as_headers(
    served: Served, model: str, content_type: str, body: bytes
) -> None:
    headers = {"Content-Type": content_type, "X-Max-Latency-Ms": "50", "X-Min-Quality": "0.95"}
    answer = served.client.post(f"/v2/models/{model}/infer", content=body, headers=headers)

    assert answer.status_code == 200
    assert served.plane.requests[-1].max_latency_ms == "50"
    assert served.plane.requests[-1].min_quality == "0.95"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [("text/plain", "größer".encode()), ("text/plain; charset=utf-8", b""), ("image/png", b"\x89PNG\xff\0")],
)
def test_text_or_image_is_one_input(served: Served, content_type: str, body: bytes) -> None:
    answer = served.client.post(
        "/v2/models/length/infer",
        content=body,
        headers={"Content-Type": content_type, "x-compression-tier": "dense"},
    )

    assert answer.status_code == 200
    assert answer.json()["outputs"] == [{"name": "length", "datatype": "INT64", "shape": [1], "data": [len(body)]}]
    assert answer.headers["content-type"] == "application/json"
    assert served.plane.requests[-1].inputs[0].array.tolist() == [body]
    assert served.plane.requests[-1].tier == "dense"


@pytest.mark.parametrize(
    ("model", "content_type", "status"),
    [("add", "image/png", 415), ("add", "text/plain", 415), ("nobody", "text/plain", 404)],
)
def test_text_or_image_is_refused_when_the_model_takes_none(
    served: Served, model: str, content_type: str, status: int
) -> None:
    answer = served.client.post(f"/v2/models/{model}/infer", content=b"x", headers={"Content-Type": content_type})

    assert answer.status_code == status
    assert model in answer.json()["error"]


def test_nan_is_null_in_json_and_itself_in_binary(served: Served) -> None:
    text = orjson.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}}]}
    )
    headers = {"Inference-Header-Content-Length": str(len(text))}

    answer = served.client.post("/v2/models/identity_fp32/infer", content=text + b"\0\0\xc0\x7f", headers=headers)

    assert answer.json()["outputs"][0]["data"] == [None]


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_output_without_json_form_is_refused_when_json_is_wanted(served: Served, datatype: str) -> None:
    text = orjson.dumps(
        {"inputs": [{"name": "x", "datatype": datatype, "shape": [1, 1], "parameters": {"binary_data_size": 2}}]}
    )
    headers = {"Inference-Header-Content-Length": str(len(text))}

    answer = served.client.post(
        f"/v2/models/identity_{datatype.lower()}/infer", content=text + b"\0\0", headers=headers
    )

    assert answer.status_code == 400
    assert "binary_data" in answer.json()["error"]


def test_rejections_are_counted_when_a_request_never_reaches_the_data_plane(served: Served) -> None:
    served.rejected.clear()
    before = len(served.plane.requests)

    served.client.post("/v2/models/add/infer", content=b"{")
    served.client.post("/v2/models/add/infer", content=b"", headers={"Content-Encoding": "br"})
    served.client.post("/v2/models/nobody/infer", content=b'{"inputs": []}')

    assert served.rejected == ["INVALID_ARGUMENT", "INVALID_ARGUMENT"]
    assert len(served.plane.requests) == before + 1
