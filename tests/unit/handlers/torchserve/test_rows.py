import io
import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from serveprune.errors import InvalidArgument, ServePruneError, Unimplemented
from serveprune.handlers.torchserve.rows import Form, Row, decode_row
from serveprune.oip.datatype import Datatype
from serveprune.oip.messages import ModelMetadata
from serveprune.oip.tensor import TensorSpec

X = TensorSpec("x", Datatype.FP32, (-1, 2))
IDS = TensorSpec("ids", Datatype.INT64, (-1, -1))
MASK = TensorSpec("mask", Datatype.INT64, (-1, -1))
TEXT = TensorSpec("text", Datatype.BYTES, (-1,))
Y = TensorSpec("y", Datatype.FP32, (-1, 1))
Z = TensorSpec("z", Datatype.FP32, (-1, 1))

JSON = "application/json"


def model(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (Y,)) -> ModelMetadata:
    return ModelMetadata("m", ("1.0",), "onnxruntime_onnx", inputs, outputs)


ONE = model(X)
TWO = model(X, IDS)
TEXTS = model(TEXT, IDS, MASK)


def read(fields: dict[str, object], headers: dict[str, object] | None = None, *, metadata: ModelMetadata = ONE) -> Row:
    return decode_row(fields, headers or {}, metadata=metadata, version="1.0")


def read_body(body: object, content_type: str = "", *, metadata: ModelMetadata = ONE) -> Row:
    return read({"body": body}, {"body": {"content-type": content_type}}, metadata=metadata)


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(InvalidArgument) as caught:
        read(*arguments, **options)
    return caught.value.message


def given_arrays(row: Row) -> dict[str, Any]:
    return {tensor.name: tensor.array.tolist() for tensor in row.request.inputs}


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    "document",
    [[[1, 2]], [1, 2], {"x": [[1, 2]]}, {"x": [1, 2]}, {"inputs": {"x": [1, 2]}}, {"inputs": [[1, 2]]}],
)
@pytest.mark.parametrize("is_decoded", [True, False])
def test_json_is_taken_by_name_and_bare_and_decoded_or_not(document: Any, is_decoded: bool) -> None:
    row = read_body(document if is_decoded else bytearray(json.dumps(document).encode()), JSON)

    assert given_arrays(row) == {"x": [[1.0, 2.0]]}
    assert row.request.inputs[0].datatype is Datatype.FP32
    assert row.form is Form.JSON
    assert (row.request.model, row.request.version) == ("m", "1.0")


def test_json_is_known_without_its_content_type() -> None:
    assert given_arrays(read_body(b" [[1, 2]]")) == {"x": [[1.0, 2.0]]}
    assert given_arrays(read_body("[[1, 2]]", "text/plain")) == {"x": [[1.0, 2.0]]}


def test_whole_numbers_go_to_integers_and_nothing_else_does() -> None:
    row = read_body({"x": [[1, 2], [3, 4]], "ids": [[1.0, 2], [3, 4]]}, metadata=TWO)

    assert given_arrays(row) == {"x": [[1.0, 2.0], [3.0, 4.0]], "ids": [[1, 2], [3, 4]]}
    assert "whole" in refusal({"body": {"x": [1, 2], "ids": [1.5]}}, metadata=TWO)


def test_bare_value_is_refused_when_the_model_takes_several() -> None:
    assert "x, ids" in refusal({"body": [[1, 2]]}, metadata=TWO)
    assert "x, ids" in refusal({"body": npy(np.ones((1, 2), np.float32))}, metadata=TWO)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, "the model takes: x"),
        ({"y": [1, 2]}, "unknown input 'y'"),
        ({"inputs": {"x": [1, 2]}, "also": 1}, "unknown input 'inputs'"),
        ({"x": {"a": 1}}, "element 0"),
        ({"x": [[1, 2], [3]]}, "nested as shape"),
        ({"x": "1"}, "a string"),
        ({"x": [1, 2], "tier": ["int8"]}, "tier"),
        (None, "null"),
    ],
)
def test_json_that_fits_no_input_is_refused_with_the_reason(document: Any, expected: str) -> None:
    assert expected in refusal({"body": document})


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{", "expected JSON"),
        (b"[NaN]", "NaN"),
        (b'{"x": "\\ud800"}', "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b'"\xff"', "expected JSON"),
        (b"", "expected JSON"),
        (b"1], [2", "expected JSON"),
    ],
)
def test_body_that_is_no_json_is_refused_with_the_reason(body: bytes, expected: str) -> None:
    assert expected in refusal({"body": body}, {"body": {"content-type": "application/json; charset=utf-8"}})
    assert expected in refusal({"body": body})


def test_half_of_a_surrogate_pair_is_refused_when_it_was_decoded_elsewhere() -> None:
    assert "surrogate" in refusal({"body": {"text": "\ud800"}}, metadata=TEXTS)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"a [b] {c}", "text/plain"),
        (b"a [b] {c}", ""),
        ("a [b] {c}", "text/plain; charset=utf-8"),
        (b'"a [b] {c}"', JSON),
        ("a [b] {c}", JSON),
        (["a [b] {c}"], JSON),
        ({"text": "a [b] {c}"}, JSON),
        ({"text": ["a [b] {c}"]}, JSON),
        ({"inputs": {"text": ["a [b] {c}"]}}, JSON),
    ],
)
def test_text_is_taken_as_it_is(body: Any, content_type: str) -> None:
    row = read_body(body, content_type, metadata=TEXTS)

    assert given_arrays(row) == {"text": [b"a [b] {c}"]}
    assert row.request.inputs[0].datatype is Datatype.BYTES
    assert row.form is Form.JSON


@pytest.mark.parametrize("text", [b"[1", b"123", b"null", b"{not json}", b"[a] note", b""])
def test_text_that_looks_like_json_and_is_none_stays_text(text: bytes) -> None:
    assert given_arrays(read({"data": text}, metadata=TEXTS)) == {"text": [text]}
    assert given_arrays(read({"text": text}, metadata=TEXTS)) == {"text": [text]}


def test_text_that_is_declared_stays_text_even_if_it_is_json() -> None:
    assert given_arrays(read_body(b"[1, 2]", "text/plain", metadata=TEXTS)) == {"text": [b"[1, 2]"]}


def test_several_texts_are_several_rows() -> None:
    assert given_arrays(read_body(["a", "ü"], metadata=TEXTS)) == {"text": [b"a", "ü".encode()]}


def test_tokens_are_taken_beside_text() -> None:
    row = read_body({"ids": [[1, 2]], "mask": [[1, 1]]}, metadata=TEXTS)

    assert given_arrays(row) == {"ids": [[1, 2]], "mask": [[1, 1]]}


def test_text_is_refused_when_the_model_takes_none() -> None:
    assert "no text" in refusal({"body": ["a"]})


def test_picture_is_one_element_wherever_it_is() -> None:
    picture = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
    metadata = model(TensorSpec("picture", Datatype.BYTES, (-1,)), X)
    for name in ("body", "data", "picture"):
        row = read({name: bytearray(picture)}, {name: {"content-type": "image/png"}}, metadata=metadata)
        assert given_arrays(row) == {"picture": [picture]}


@pytest.mark.parametrize("name", ["body", "data", "x"])
def test_npy_is_taken_and_so_is_its_form(name: str) -> None:
    for array in (np.array([[1, 2]], np.float32), np.array([1, 2], np.float32)):
        row = read({name: bytearray(npy(array))})
        assert given_arrays(row) == {"x": [[1.0, 2.0]]}
        assert row.form is Form.NPY


def test_npy_is_refused_when_its_answer_would_be_several() -> None:
    message = refusal({"body": npy(np.ones((1, 2), np.float32))}, metadata=model(X, outputs=(Y, Z)))

    assert "y, z" in message


def test_safetensors_are_taken_and_so_is_their_form() -> None:
    content = safetensors.numpy.save({"x": np.array([[1, 2]], np.float32), "ids": np.array([7])})

    row = read({"body": bytearray(content)}, metadata=TWO)

    assert given_arrays(row) == {"x": [[1.0, 2.0]], "ids": [[7]]}
    assert row.form is Form.SAFETENSORS


def test_fields_of_a_form_may_be_in_different_forms() -> None:
    fields: dict[str, object] = {"x": npy(np.array([1, 2], np.float32)), "ids": b"[[7, 8]]"}

    row = read(fields, {"ids": {"content-type": None}}, metadata=TWO)

    assert given_arrays(row) == {"x": [[1.0, 2.0]], "ids": [[7, 8]]}
    assert row.form is Form.SAFETENSORS


def test_input_that_is_given_twice_is_refused() -> None:
    content = safetensors.numpy.save({"x": np.ones((1, 2), np.float32), "ids": np.array([[7]])})

    assert "'ids'" in refusal({"x": content, "ids": b"[[7]]"}, metadata=TWO)


def test_body_and_inputs_at_once_are_refused() -> None:
    assert "either body" in refusal({"body": b"[1, 2]", "x": b"[1, 2]"})


def test_input_may_be_called_as_torchserve_calls_bodies() -> None:
    metadata = model(TensorSpec("data", Datatype.FP32, (-1, 2)))

    assert given_arrays(read({"data": b"[1, 2]"}, metadata=metadata)) == {"data": [[1.0, 2.0]]}
    assert given_arrays(read_body({"data": [1, 2]}, metadata=metadata)) == {"data": [[1.0, 2.0]]}


def oip(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    return {"id": "7", "inputs": [tensor], "outputs": [{"name": "y"}], **changes}


def test_open_inference_protocol_is_taken_and_so_is_its_form() -> None:
    row = read_body(oip(parameters={"tier": "int8", "other": 1}), JSON)

    assert given_arrays(row) == {"x": [[1.0, 2.0]]}
    assert row.form is Form.OIP
    assert (row.request.id, row.request.outputs) == ("7", ("y",))
    assert row.request.parameters == {"tier": "int8", "other": 1}


@pytest.mark.parametrize("inputs", [[], [{"datatype": "FP32"}], [{"name": "x"}, 5]])
def test_open_inference_protocol_that_is_wrong_is_told_in_its_words(inputs: list[Any]) -> None:
    if inputs:
        assert "inputs[" in refusal({"body": {"inputs": inputs}}) or "'x'" in refusal({"body": {"inputs": inputs}})
    else:
        assert read_body({"inputs": []}).request.inputs == ()


@pytest.mark.parametrize("name", ["x-compression-tier", "X-Compression-Tier", "X-COMPRESSION-TIER"])
def test_header_names_the_tier_in_any_spelling(name: str) -> None:
    assert read({"body": [1, 2]}, {name: " int8 "}).request.tier == "int8"


def test_headers_name_objectives() -> None:
    request = read({"body": [1, 2]}, {"X-Max-Latency-Ms": "5", "X-Min-Quality": "0.9"}).request

    assert (request.max_latency_ms, request.min_quality) == ("5", "0.9")
    assert ("x-min-quality", "0.9") in request.headers


@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        ("tier", b"int8", "int8"),
        ("tier", "int8 ", "int8"),
        ("strict_tier", b"True", True),
        ("strict_tier", b"0", False),
        ("strict_tier", b"maybe", "maybe"),
        ("max_latency_ms", b"12.5", "12.5"),
        ("max_latency_ms", 12.5, 12.5),
        ("min_quality", b"0.9", "0.9"),
        ("priority", b"3", 3),
        ("priority", b"9" * 5000, "9" * 5000),
        ("timeout", b"-3", "-3"),
    ],
)
def test_fields_say_what_parameters_say(name: str, said: object, expected: object) -> None:
    request = read({"x": b"[1, 2]", name: said}).request

    assert request.parameters == {name: expected}
    assert type(request.parameters[name]) is type(expected)


def test_keys_of_json_say_what_parameters_say() -> None:
    assert read_body({"x": [1, 2], "tier": "int8", "strict_tier": True}).request.parameters == {
        "tier": "int8",
        "strict_tier": True,
    }


def test_field_beside_a_body_says_it_too() -> None:
    row = read({"tier": b"int8", "body": b"[1, 2]"})

    assert row.request.parameters == {"tier": "int8"}
    assert given_arrays(row) == {"x": [[1.0, 2.0]]}


def test_name_of_the_model_beside_a_body_is_passed_over() -> None:
    assert given_arrays(read({"model_name": b"m", "body": b"[1, 2]"})) == {"x": [[1.0, 2.0]]}


def test_input_that_is_called_as_a_parameter_is_an_input() -> None:
    row = read_body({"tier": [1, 2]}, metadata=model(TensorSpec("tier", Datatype.FP32, (-1, 2))))

    assert given_arrays(row) == {"tier": [[1.0, 2.0]]}
    assert row.request.parameters == {}


@pytest.mark.parametrize("path", ["tier/int8", "/tier/int8", "tier/int8/"])
def test_path_names_the_tier(path: str) -> None:
    assert read({"body": [1, 2]}, {"url_path": path}).request.parameters == {"tier": "int8"}


@pytest.mark.parametrize("path", ["", "/"])
def test_path_that_ends_with_the_model_says_nothing(path: str) -> None:
    assert read({"body": [1, 2]}, {"url_path": path}).request.parameters == {}


@pytest.mark.parametrize("path", ["tier", "tier/", "tier/a/b", "tear/int8"])
def test_path_that_says_something_else_is_refused(path: str) -> None:
    assert "tier/TIER" in refusal({"body": [1, 2]}, {"url_path": path})


def test_places_that_disagree_are_refused() -> None:
    assert "twice" in refusal({"body": {"x": [1, 2], "tier": "int8"}}, {"url_path": "tier/lean"})
    assert "twice" in refusal({"body": oip(parameters={"tier": "int8"}), "tier": b"lean"})


def test_explanations_are_refused() -> None:
    with pytest.raises(Unimplemented, match="predictions"):
        read({"body": [1, 2]}, {"explain": "True"})


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.characters(categories=["Cs"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["x", "inputs", "tier", "name", "data", "shape", "", "text"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
FIELD_NAMES = st.sampled_from(["body", "data", "x", "text", "ids", "tier", "strict_tier", "other", ""])


@given(
    fields=st.dictionaries(FIELD_NAMES, JSON_VALUES | st.binary() | st.binary().map(bytearray), max_size=3),
    content_type=st.sampled_from(["", JSON, "text/plain", "image/png"]),
    metadata=st.sampled_from([ONE, TWO, TEXTS]),
)
def test_any_row_is_read_or_refused(fields: dict[str, Any], content_type: str, metadata: ModelMetadata) -> None:
    headers: dict[str, object] = {name: {"content-type": content_type} for name in fields}
    try:
        read(fields, headers, metadata=metadata)
    except ServePruneError:
        return
