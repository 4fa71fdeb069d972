import io
import json

import numpy as np
import pytest
import safetensors.numpy

from serveprune.errors import InvalidArgument, NotFound
from serveprune.handlers.torchserve.replies import encode_error, encode_reply, header_text
from serveprune.handlers.torchserve.rows import Form
from serveprune.oip.datatype import Datatype
from serveprune.oip.messages import InferenceResponse
from serveprune.oip.tensor import Array, Tensor


def response(*tensors: Tensor) -> InferenceResponse:
    return InferenceResponse("m", "1.0", tensors, tier="int8", tier_reason="asked for", id="7")


def reply(array: Array, form: Form) -> tuple[bytes, str]:
    return encode_reply(response(Tensor.of("y", array)), form)


FLOATS = np.array([[0.5, -2.0], [1e-3, 4.0]], dtype=np.float32)


def test_json_is_nested_as_the_shape_is() -> None:
    body, content_type = reply(FLOATS, Form.JSON)

    assert content_type == "application/json"
    np.testing.assert_array_equal(np.array(json.loads(body)["y"], dtype=np.float32), FLOATS)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array(2.5, dtype=np.float32), 2.5),
        (np.zeros((0, 3), dtype=np.int64), []),
        (np.array([[True, False]]), [[True, False]]),
        (np.array([2**64 - 1], dtype=np.uint64), [2**64 - 1]),
        (np.array([np.nan, np.inf], dtype=np.float64), [None, None]),
        (np.arange(4, dtype=np.int8).reshape(2, 2).T, [[0, 2], [1, 3]]),
        (np.array([[b"a", "ü".encode()]], dtype=object), [["a", "ü"]]),
        (np.array(b"a", dtype=object), "a"),
    ],
)
def test_json_has_every_kind_of_element_and_shape(array: Array, expected: object) -> None:
    assert json.loads(reply(array, Form.JSON)[0]) == {"y": expected}


def test_open_inference_protocol_has_tier_and_reason() -> None:
    body, content_type = reply(FLOATS, Form.OIP)

    assert content_type == "application/json"
    document = json.loads(body)
    assert document["parameters"] == {"tier": "int8", "tier_reason": "asked for"}
    assert (document["id"], document["model_name"], document["model_version"]) == ("7", "m", "1.0")
    assert document["outputs"][0] | {"data": None} == {"name": "y", "datatype": "FP32", "shape": [2, 2], "data": None}
    np.testing.assert_array_equal(np.array(document["outputs"][0]["data"], np.float32), FLOATS.ravel())


@pytest.mark.parametrize("array", [FLOATS, FLOATS.astype(np.float16), FLOATS.astype(np.int64), FLOATS > 0])
def test_files_hold_the_outputs(array: Array) -> None:
    body, content_type = reply(array, Form.NPY)
    assert content_type == "application/octet-stream"
    np.testing.assert_array_equal(np.load(io.BytesIO(body), allow_pickle=False), array, strict=True)

    body, content_type = encode_reply(response(Tensor.of("y", array), Tensor.of("z", array[:1])), Form.SAFETENSORS)
    assert content_type == "application/octet-stream"
    found = safetensors.numpy.load(body)
    np.testing.assert_array_equal(found["y"], array, strict=True)
    np.testing.assert_array_equal(found["z"], array[:1], strict=True)


@pytest.mark.parametrize(
    ("tensor", "form"),
    [
        (Tensor("y", Datatype.BYTES, np.array([b"a"], dtype=object)), Form.NPY),
        (Tensor("y", Datatype.BYTES, np.array([b"a"], dtype=object)), Form.SAFETENSORS),
        (Tensor("y", Datatype.BF16, np.array([1], dtype=np.uint16)), Form.NPY),
        (Tensor("y", Datatype.FP16, np.array([1], dtype=np.float16)), Form.JSON),
        (Tensor("y", Datatype.BYTES, np.array([b"\xff"], dtype=object)), Form.JSON),
        (Tensor("y", Datatype.FP16, np.array([1], dtype=np.float16)), Form.OIP),
    ],
)
def test_output_that_a_form_cannot_say_is_refused_by_name(tensor: Tensor, form: Form) -> None:
    with pytest.raises(InvalidArgument, match="'y'"):
        encode_reply(response(tensor), form)


def test_error_says_what_was_wrong() -> None:
    body = encode_error(NotFound("no such tier"), model="m", version="1.0")

    assert json.loads(body) == {"error": "no such tier"}


def test_error_has_all_keys_of_an_answer_when_the_front_end_reads_them() -> None:
    document = json.loads(encode_error(NotFound("no such tier"), model="m", version="1.0", is_reread=True))

    error = {"name": "error", "datatype": "BYTES", "shape": [1], "data": ["no such tier"]}
    assert document.pop("outputs") == [error]
    assert document == {"error": "no such tier", "id": "", "model_name": "m", "model_version": "1.0"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_null_among_numbers_is_refused_when_the_front_end_reads_them(value: float) -> None:
    answer = response(Tensor.of("y", np.array([1, value], dtype=np.float32)))

    with pytest.raises(InvalidArgument, match="'y' holds NaN"):
        encode_reply(answer, Form.OIP, is_reread=True)
    assert json.loads(encode_reply(answer, Form.OIP)[0])["outputs"][0]["data"] == [1, None]


def test_error_is_written_when_its_text_is_no_unicode() -> None:
    assert json.loads(encode_error(NotFound("\ud800?"), model="m", version="1.0")) == {"error": "??"}


@pytest.mark.parametrize(
    ("text", "expected"), [("int8", "int8"), ("a\r\nb\0", "a??b?"), ("größer", "gr??er"), ("a~ b\x7f", "a~ b?")]
)
def test_header_holds_printable_characters_only(text: str, expected: str) -> None:
    assert header_text(text) == expected
