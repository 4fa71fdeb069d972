"""What a body may be, and what nobody should send."""

import io
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import load, save

from e2e.deployment import fashion_images
from e2e.graphs import CARRIER_WIDTH
from e2e.torchserve.conftest import carrier_inputs
from e2e.torchserve.messages import array_of, image_field, predict, stream, stream_both_ways
from e2e.torchserve.torchserve_process import TorchServeProcess
from serveprune.oip.tensor import Array


def npy_of(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.fixture(scope="module")
def images(torchserve: TorchServeProcess) -> Array:
    return fashion_images(torchserve.folder, 2)


@pytest.fixture(scope="module")
def logits(torchserve: TorchServeProcess, images: Array) -> Any:
    return array_of(torchserve.ask("fashion", json={"image": images.tolist()}), "logits")


@pytest.mark.parametrize("content_type", [None, "application/octet-stream", "image/x-anything"])
def test_npy_is_answered_in_npy(
    torchserve: TorchServeProcess, images: Array, logits: Any, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    answer = torchserve.ask("fashion", content=npy_of(images), headers=headers)

    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), logits, atol=1e-4)


def test_safetensors_are_answered_in_safetensors(torchserve: TorchServeProcess) -> None:
    random = np.random.default_rng(5)
    given = {"id": np.array([[3], [4]]), "x": random.normal(size=(2, CARRIER_WIDTH)).astype(np.float32)}

    answer = torchserve.ask("carrier", content=save(given))

    assert answer.status_code == 200, answer.text
    outputs = load(answer.content)
    assert outputs["who"].tolist() == [[3], [4]]
    np.testing.assert_allclose(outputs["total"], given["id"] + given["x"].sum(axis=1, keepdims=True), rtol=1e-4)


@pytest.mark.parametrize("wrap", [lambda image: image, lambda image: {"image": image}, lambda image: {"inputs": image}])
def test_json_is_taken_by_name_and_bare(torchserve: TorchServeProcess, images: Array, logits: Any, wrap: Any) -> None:
    for given, expected in ((images, logits), (images[0], logits[:1])):
        answer = torchserve.ask("fashion", json=wrap(given.tolist()))
        np.testing.assert_allclose(array_of(answer, "logits"), expected, atol=1e-4)


def test_picture_is_taken_as_body_form_field_and_grpc_entry(torchserve: TorchServeProcess) -> None:
    picture = (Path(torchserve.folder) / "boot.png").read_bytes()
    answers = [
        torchserve.ask("fashion", content=picture, headers={"content-type": "image/png"}),
        torchserve.ask("fashion", content=picture),
        torchserve.ask("fashion", files={"data": ("boot.png", picture, "image/png")}),
        torchserve.ask("fashion", files={"image_bytes": picture}),
    ]
    logits = [array_of(answer, "logits") for answer in answers]
    logits += [
        json.loads(predict(torchserve, "fashion", {name: picture}))["logits"] for name in ("data", "image_bytes")
    ]

    for each in logits:
        np.testing.assert_allclose(each, logits[0], atol=1e-4)
    # An ankle boot is class 9 of the data set.
    assert int(np.argmax(logits[0])) == 9


def test_text_is_taken_as_body_json_form_field_and_grpc_entry(torchserve: TorchServeProcess) -> None:
    text = "Überraschung [1] {am Morgen}"
    answers = [
        torchserve.ask("minilm", content=text.encode(), headers={"content-type": "text/plain; charset=utf-8"}),
        torchserve.ask("minilm", content=text.encode()),
        torchserve.ask("minilm", json=text),
        torchserve.ask("minilm", json=[text]),
        torchserve.ask("minilm", json={"text": text}),
        torchserve.ask("minilm", data={"text": text}),
        torchserve.ask("minilm", files={"data": text.encode()}),
    ]
    vectors = [array_of(answer, "embedding") for answer in answers]
    vectors += [
        json.loads(predict(torchserve, "minilm", {name: text.encode()}))["embedding"] for name in ("data", "text")
    ]

    for each in vectors:
        np.testing.assert_allclose(each, vectors[0], atol=1e-4)


def test_form_takes_each_input_in_a_field(torchserve: TorchServeProcess) -> None:
    row = carrier_inputs(6)
    answer = torchserve.ask("carrier", data={name: json.dumps(value) for name, value in row.items()})

    assert answer.status_code == 200, answer.text
    assert answer.json()["who"] == [[6]]


def oip(**changes: Any) -> dict[str, Any]:
    given = {"name": "image", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": [0.5] * 784, **changes}
    return {"inputs": [given]}


def npy_header(text: str, rest: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin-1") + rest


def safetensors_of(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + b"1234"


REFUSALS = {400, 404, 501}
"""Wrong, of no such tier, of no such extension."""
JSON = {"content-type": "application/json"}
HOSTILE: dict[str, dict[str, Any]] = {
    "nothing": {"content": b""},
    "no json": {"content": b"{", "headers": JSON},
    "no utf-8": {"content": b'"\xff\xfe"', "headers": JSON},
    "nan": {"content": b'{"image": [NaN]}', "headers": JSON},
    "infinity": {"content": b'{"image": [1e999]}', "headers": JSON},
    "half of a surrogate pair": {"content": b'{"image": "\\ud800"}', "headers": JSON},
    "half of a surrogate pair as name": {"content": b'{"\\udfff": 1}', "headers": JSON},
    "deep json": {"content": b"[" * 100_000, "headers": JSON},
    "deep closed json": {"content": b"[" * 50_000 + b"]" * 50_000, "headers": JSON},
    "deep object": {"content": b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "headers": JSON},
    "huge integer": {"content": b'{"image": ' + b"9" * 5000 + b"}", "headers": JSON},
    "null": {"json": None, "headers": JSON, "content": None},
    "number": {"json": 5},
    "ragged": {"json": {"image": [[1, 2], [3]]}},
    "objects as elements": {"json": {"image": [{"a": 1}]}},
    "empty array": {"json": []},
    "empty axes": {"json": {"image": [[[[]]]]}},
    "empty object": {"json": {}},
    "unknown input": {"json": {"picture": [1]}},
    "tier of no text": {"json": {"image": [1], "tier": ["int8"]}},
    "empty tier": {"json": {"image": [1], "tier": ""}},
    "oip without inputs": {"json": {"inputs": []}},
    "oip of wrong size": {"json": oip(shape=[2, 1, 28, 28])},
    "oip of huge shape": {"json": oip(shape=[2**62, 2**62])},
    "oip of negative shape": {"json": oip(shape=[-1, -784])},
    "oip of unknown datatype": {"json": oip(datatype="FP8")},
    "oip with shared memory": {"json": oip(parameters={"shared_memory_region": "x"})},
    "oip with no object": {"json": {"inputs": [{"name": "image"}, 5]}},
    "oip with a number as id": {"json": {**oip(), "id": 7}},
    "npy of objects": {"content": npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"\x80\x04.")},
    "npy of a huge shape": {
        "content": npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999, 9), }")
    },
    "npy of a negative shape": {
        "content": npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4), }", b"1" * 16)
    },
    "npy of a structure": {
        "content": npy_header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", b"1234")
    },
    "npy of nothing": {"content": b"\x93NUMPY"},
    "npy of a cut header": {"content": b"\x93NUMPY\x01\x00\xff\xff{"},
    "npy of brackets": {"content": npy_header("(" * 60_000)},
    "npy of minuses": {"content": npy_header("{'descr': " + "-" * 60_000 + "1}")},
    "npy of a kind that is none": {"content": npy_header("{'descr': '|V0', 'fortran_order': False, 'shape': (1,), }")},
    "npy of version 9": {"content": b"\x93NUMPY\x09\x00" + struct.pack("<I", 2**31) + b"{}"},
    "npy of float64": {"content": npy_of(np.ones((1, 1, 28, 28)))},
    "npy of texts": {"content": npy_of(np.array(["a"]))},
    "safetensors of nothing": {"content": struct.pack("<Q", 2) + b"{}"},
    "safetensors that overlap": {
        "content": safetensors_of(
            b'{"image":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        )
    },
    "safetensors beyond the end": {
        "content": safetensors_of(b'{"image":{"dtype":"F32","shape":[999],"data_offsets":[0,3996]}}')
    },
    "safetensors of another name": {"content": save({"picture": np.ones(1, np.float32)})},
    "picture that is cut": {
        "content": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
        "headers": {"content-type": "image/png"},
    },
    "text": {"content": b"hello", "headers": {"content-type": "text/plain"}},
    "form without inputs": {"data": {"tier": "int8"}},
    "form with a body and more": {"files": {"data": b"1"}, "data": {"image": "[1]"}},
    "form with a broken array": {"data": {"image": "[1, 2"}},
    "two inputs of one name": {"files": {"image": save({"image": np.ones((1, 1, 28, 28), np.float32)}), "x": b"1"}},
    "zero bytes": {"content": b"\x00" * 64},
    "header of no number": {"json": oip(), "headers": {"x-min-quality": "much"}},
    "header of latin-1": {"json": oip(), "headers": [(b"x-compression-tier", b"int\xe98")]},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_request_is_refused_and_the_worker_lives(torchserve: TorchServeProcess, name: str) -> None:
    before = torchserve.worker_pids("fashion")
    request = {key: value for key, value in HOSTILE[name].items() if value is not None or key == "json"}

    answer = torchserve.ask("fashion", **request)

    assert answer.status_code in REFUSALS, f"{answer.status_code} {answer.text[:300]}"
    assert answer.json()["error"], answer.text
    assert torchserve.ask("fashion", **image_field(torchserve.folder)).status_code == 200
    assert torchserve.worker_pids("fashion") == before


GRPC: dict[str, dict[str, bytes]] = {
    "nothing": {},
    "empty": {"data": b""},
    "unknown entry": {"what": b"1"},
    "broken json": {"data": b"{"},
    "bytes": {"data": bytes(range(256))},
    "tier of no text": {"data": b"[1]", "tier": b"\xff\xfe"},
    "many entries": {f"entry-{number}": b"x" for number in range(1000)},
}


@pytest.mark.parametrize("name", GRPC)
def test_hostile_grpc_call_gets_an_error_and_the_worker_lives(torchserve: TorchServeProcess, name: str) -> None:
    before = torchserve.worker_pids("fashion")

    # The front end has no way to hand a handler's status on.
    assert json.loads(predict(torchserve, "fashion", GRPC[name]))["error"]

    assert torchserve.ask("fashion", **image_field(torchserve.folder)).status_code == 200
    assert torchserve.worker_pids("fashion") == before


def test_all_hostile_requests_at_once_leave_others_answered(torchserve: TorchServeProcess, logits: Any) -> None:
    good = image_field(torchserve.folder)
    requests = [
        {key: value for key, value in request.items() if value is not None or key == "json"}
        for hostile in HOSTILE.values()
        for request in (hostile, good)
    ]
    before = torchserve.worker_pids("fashion")

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda request: torchserve.ask("fashion", **request), requests))

    assert {answer.status_code for answer in answers[1::2]} == {200}
    for answer in answers[1::2]:
        np.testing.assert_allclose(array_of(answer, "logits"), logits[:1], atol=1e-3)
    assert {answer.status_code for answer in answers[::2]} <= REFUSALS
    assert torchserve.worker_pids("fashion") == before


def test_answer_that_torchserve_would_not_carry_is_refused_and_the_worker_lives(torchserve: TorchServeProcess) -> None:
    before = torchserve.worker_pids("minilm")

    # 2000 vectors of 384 numbers.
    answer = torchserve.ask("minilm", json=["a"] * 2000)

    assert answer.status_code == 413, answer.text[:300]
    assert "fewer rows" in answer.json()["error"]
    assert torchserve.ask("minilm", json=["a"] * 1000).status_code == 200
    assert torchserve.worker_pids("minilm") == before


def test_request_of_more_rows_than_one_may_have_is_refused(torchserve: TorchServeProcess) -> None:
    answer = torchserve.ask("eager", json={"x": [[0] * 24] * 5000})

    assert answer.status_code == 400
    assert "4096 rows" in answer.json()["error"]


@pytest.mark.parametrize("data", [b"[0]", b"{"])
def test_stream_is_one_answer_and_the_worker_lives(torchserve: TorchServeProcess, data: bytes) -> None:
    before = torchserve.worker_pids("eager")

    (answer,) = stream(torchserve, "eager", {"data": data})

    assert json.loads(answer)["error"]
    assert torchserve.ask("eager", json={"x": [0] * 24}).status_code == 200
    assert torchserve.worker_pids("eager") == before


def test_stream_both_ways_is_refused_by_torchserve_and_the_worker_lives(torchserve: TorchServeProcess) -> None:
    before = torchserve.worker_pids("eager")

    # Its front end has these for models that keep a state between requests, and answers what is not such.
    (answer,) = stream_both_ways(torchserve, "eager", {"x": b"[0]"})
    assert b"Parameter sequenceId is required" in answer
    with pytest.raises(grpc.RpcError):
        stream_both_ways(torchserve, "eager", {"x": b"[0]"}, sequence="one")

    assert torchserve.ask("eager", json={"x": [0] * 24}).status_code == 200
    assert torchserve.worker_pids("eager") == before


def test_grpc_answer_in_the_form_of_the_protocol_says_tier_and_reason(torchserve: TorchServeProcess) -> None:
    text = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["a fine film"]}
    for tier in ("dense", "int8"):
        answer = json.loads(
            predict(torchserve, "minilm", {"data": json.dumps({"inputs": [text]}).encode(), "tier": tier.encode()})
        )
        assert answer["parameters"]["tier"] == tier, answer
        assert answer["parameters"]["tier_reason"] == "requested"


@pytest.mark.parametrize(
    "tokens",
    [[[10**9]], [[-(10**9)]], [[2**62]], [[1] * 600], [[1] * 100_000]],
    ids=["large", "low", "huge", "long", "longer"],
)
def test_tokens_that_the_graph_has_none_for_are_refused_and_the_worker_lives(
    torchserve: TorchServeProcess, tokens: list[list[int]]
) -> None:
    before = torchserve.worker_pids("minilm")
    ones = [[1] * len(row) for row in tokens]

    answer = torchserve.ask(
        "minilm",
        json={"input_ids": tokens, "attention_mask": ones, "token_type_ids": [[0] * len(row) for row in tokens]},
    )

    assert answer.status_code == 400, answer.text[:500]
    assert answer.json()["error"]
    assert torchserve.ask("minilm", json=["a " * 100_000, "b"]).status_code == 200
    assert torchserve.worker_pids("minilm") == before
