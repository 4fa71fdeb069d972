import contextlib
import struct
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveprune.errors import InvalidArgument, ServePruneError, Unimplemented
from serveprune.oip.datatype import Datatype
from serveprune.oip.json_codec import decode_request, encode_response
from serveprune.oip.messages import InferenceRequest, InferenceResponse
from serveprune.oip.output_format import OutputFormat
from serveprune.oip.tensor import Tensor

JSON_INPUT = {"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}
BINARY_INPUT = {"name": "b", "datatype": "INT16", "shape": [3], "parameters": {"binary_data_size": 6}}
BINARY = struct.pack("<3h", 1, -2, 3)


def decode(document: object, binary: bytes | None = None) -> tuple[InferenceRequest, OutputFormat]:
    text = document if isinstance(document, bytes) else orjson.dumps(document)
    length = None if binary is None else len(text)
    return decode_request(text + (binary or b""), header_length=length, model="m")


def refusal(document: object, binary: bytes | None = None) -> str:
    with pytest.raises(InvalidArgument) as caught:
        decode(document, binary)
    return caught.value.message


def test_request_keeps_what_was_sent() -> None:
    document = {
        "id": "7",
        "parameters": {"tier": "int8", "strict_tier": True, "limit": 0.5, "count": 3},
        "inputs": [JSON_INPUT],
        "outputs": [{"name": "y"}, {"name": "z"}],
        "extension": {"unknown": [1, 2]},
    }

    request, output_format = decode_request(
        orjson.dumps(document),
        header_length=None,
        model="m@int8",
        version="2",
        tier="t",
        deadline=9.5,
        max_latency_ms="50",
        min_quality="0.9",
    )

    assert (request.model, request.version, request.id) == ("m@int8", "2", "7")
    assert (request.tier, request.deadline) == ("t", 9.5)
    assert (request.max_latency_ms, request.min_quality) == ("50", "0.9")
    assert request.parameters == {"tier": "int8", "strict_tier": True, "limit": 0.5, "count": 3}
    assert request.outputs == ("y", "z")
    assert [tensor.name for tensor in request.inputs] == ["a"]
    assert request.inputs[0].array.tolist() == [[1.5, 2.5]]
    assert not output_format.is_binary("y")


def test_absent_and_null_mean_the_same() -> None:
    request, _ = decode({"inputs": [], "id": None, "parameters": None, "outputs": None})

    assert (request.id, request.parameters, request.outputs, request.inputs) == (None, {}, (), ())


def test_binary_inputs_follow_the_json_in_the_order_of_inputs() -> None:
    first = {**BINARY_INPUT, "name": "first", "shape": [1], "parameters": {"binary_data_size": 2.0}}

    request, _ = decode({"inputs": [first, JSON_INPUT, BINARY_INPUT]}, b"\x05\x00" + BINARY)

    assert [tensor.array.ravel().tolist() for tensor in request.inputs] == [[5], [1.5, 2.5], [1, -2, 3]]


def test_binary_input_shares_the_memory_of_the_body_when_it_is_aligned() -> None:
    text = orjson.dumps({"inputs": [BINARY_INPUT]})
    text += b" " * (-len(text) % 8)
    body = np.frombuffer(bytearray(text + BINARY), dtype=np.uint8)

    request, _ = decode_request(body.data, header_length=len(text), model="m")

    assert np.shares_memory(request.inputs[0].array, body)


@pytest.mark.parametrize(
    ("parameters", "outputs", "expected"),
    [
        ({}, [{"name": "y"}, {"name": "z"}], (False, False)),
        ({"binary_data_output": True}, [], (True, True)),
        ({"binary_data_output": 1.0}, [], (True, True)),
        ({}, [{"name": "y", "parameters": {"binary_data": True}}, {"name": "z"}], (True, False)),
        ({"binary_data_output": True}, [{"name": "y", "parameters": {"binary_data": False}}], (False, True)),
    ],
)
def test_outputs_are_binary_when_asked_for(
    parameters: dict[str, Any], outputs: list[dict[str, Any]], expected: tuple[bool, bool]
) -> None:
    _, output_format = decode({"inputs": [], "parameters": parameters, "outputs": outputs})

    assert (output_format.is_binary("y"), output_format.is_binary("z")) == expected


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "expected JSON"),
        (b"{", "expected JSON"),
        (b'{"inputs": [', "expected JSON"),
        (b'{"inputs": []} x', "expected JSON"),
        (b'{"inputs": [{"data": [NaN]}]}', "without NaN or Infinity"),
        (b'{"inputs": [{"data": [Infinity]}]}', "without NaN or Infinity"),
        (b'{"inputs": [{"data": [1e999]}]}', "expected JSON"),
        (b'{"id": "\xff"}', "expected JSON in UTF-8"),
        (b'{"id": "\\ud800"}', "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b"\x00\x01", "expected JSON"),
        ([], "request: expected an object, got an array"),
        (1, "request: expected an object, got a number"),
        ({}, "inputs: expected an array, got nothing"),
        ({"inputs": {}}, "inputs: expected an array, got an object"),
        ({"inputs": [[]]}, "inputs[0]: expected an object, got an array"),
        ({"inputs": [{}]}, "inputs[0].name: expected a string that is not empty, got None"),
        ({"inputs": [{"name": ""}]}, "inputs[0].name"),
        ({"inputs": [{"name": 1}]}, "inputs[0].name"),
        ({"inputs": [JSON_INPUT, JSON_INPUT]}, "inputs[1]: 'a' is named a second time"),
        ({"inputs": [{"name": "a"}]}, "input 'a': datatype: expected one of BOOL"),
        ({"inputs": [{**JSON_INPUT, "datatype": "fp32"}]}, "got 'fp32'"),
        ({"inputs": [{**JSON_INPUT, "datatype": ["FP32"]}]}, "got ['FP32']"),
        ({"inputs": [{**JSON_INPUT, "shape": None}]}, "input 'a': expected an array as shape, got null"),
        ({"inputs": [{**JSON_INPUT, "shape": 2}]}, "input 'a': expected an array as shape, got a number"),
        ({"inputs": [{**JSON_INPUT, "shape": [-1, 2]}]}, "got -1"),
        ({"inputs": [{**JSON_INPUT, "shape": [True, 2]}]}, "got True"),
        ({"inputs": [{**JSON_INPUT, "shape": [1.5, 2]}]}, "got 1.5"),
        ({"inputs": [{**JSON_INPUT, "shape": ["1", 2]}]}, "got '1'"),
        ({"inputs": [{**JSON_INPUT, "shape": [2**64 - 1, 2]}]}, "got 18446744073709551615"),
        ({"inputs": [{**JSON_INPUT, "shape": [2**39, 2**39]}]}, "input 'a'"),
        ({"inputs": [{**JSON_INPUT, "shape": [1] * 33}]}, "at most 32 axes"),
        ({"inputs": [{**JSON_INPUT, "parameters": []}]}, "input 'a': parameters: expected an object"),
        ({"inputs": [{"name": "a", "datatype": "FP32", "shape": [1]}]}, "expected data, or the parameter"),
        ({"inputs": [BINARY_INPUT]}, "Inference-Header-Content-Length"),
        ({"inputs": [], "id": 7}, "id: expected a string, got a number"),
        ({"inputs": [], "parameters": [1]}, "parameters: expected an object, got an array"),
        ({"inputs": [], "parameters": {"a": {}}}, "for 'a', got an object"),
        ({"inputs": [], "parameters": {"a": None}}, "for 'a', got null"),
        ({"inputs": [], "parameters": {"binary_data_output": "yes"}}, "binary_data_output: expected true or false"),
        ({"inputs": [], "outputs": {}}, "outputs: expected an array"),
        ({"inputs": [], "outputs": ["y"]}, "outputs[0]: expected an object, got a string"),
        ({"inputs": [], "outputs": [{"name": "y"}, {"name": "y"}]}, "outputs[1]: 'y' is named a second time"),
        ({"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": 2}}]}, "binary_data: expected true"),
    ],
)
def test_request_is_refused_when_its_json_is_wrong(document: object, message: str) -> None:
    assert message in refusal(document)


@pytest.mark.parametrize(
    ("size", "binary", "message"),
    [
        (6, b"", "at most the 0 bytes that are left in the body, got a binary_data_size of 6"),
        (7, BINARY, "at most the 6 bytes"),
        (4, BINARY[:4], "expected 6 bytes for INT16 of shape [3], got 4"),
        (6, BINARY + b"\0", "expected 6 bytes after the JSON, the sum of all binary_data_size, got 7"),
        (4, BINARY, "expected 6 bytes for INT16"),
        (-6, BINARY, "expected a whole number of bytes, got -6"),
        (6.5, BINARY, "expected a whole number of bytes, got 6.5"),
        (True, BINARY, "expected a whole number of bytes, got True"),
        ("6", BINARY, "expected a whole number of bytes, got '6'"),
        (1e300, BINARY, "at most the 6 bytes"),
    ],
)
def test_request_is_refused_when_sizes_do_not_add_up(size: object, binary: bytes, message: str) -> None:
    entry = {**BINARY_INPUT, "parameters": {"binary_data_size": size}}

    assert message in refusal({"inputs": [entry]}, binary)


def test_request_is_refused_when_bytes_follow_that_no_input_claims() -> None:
    assert "expected 0 bytes after the JSON" in refusal({"inputs": [JSON_INPUT]}, b"\0")


def test_request_is_refused_when_an_input_comes_both_ways() -> None:
    assert "only instead of data" in refusal({"inputs": [{**BINARY_INPUT, "data": [1, 2, 3]}]}, BINARY)


@pytest.mark.parametrize("length", [0, -1, 14, 10**18])
def test_request_is_refused_when_the_header_length_is_not_within_the_body(length: int) -> None:
    with pytest.raises(InvalidArgument, match=f"got a declared length of {length}$"):
        decode_request(b'{"inputs":[]}', header_length=length, model="m")


def test_request_is_refused_when_the_header_length_cuts_the_json() -> None:
    with pytest.raises(InvalidArgument, match="expected JSON"):
        decode_request(b'{"inputs":[]}', header_length=12, model="m")


@pytest.mark.parametrize(
    "document",
    [
        {"inputs": [{**JSON_INPUT, "parameters": {"shared_memory_region": "r"}}]},
        {"inputs": [], "outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]},
        {"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": 3}}]},
    ],
)
def test_extensions_that_are_not_here_are_said_to_be(document: object) -> None:
    with pytest.raises(Unimplemented, match="not supported"):
        decode(document)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "datatype", "shape", "data", "parameters", "binary_data_size"]), inner
        )
    ),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["a", "b", "", 1]),
        "datatype": st.sampled_from([*Datatype, "FP8", None]),
        "shape": st.lists(st.integers(-2, 4) | st.booleans() | st.floats(allow_nan=False), max_size=4) | JSON_VALUES,
        "data": JSON_VALUES,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 9) | JSON_VALUES}) | JSON_VALUES,
    },
)


@given(st.lists(ENTRIES, max_size=3) | JSON_VALUES, JSON_VALUES, st.none() | st.binary(max_size=12))
def test_any_request_is_decoded_or_refused_and_never_crashes(
    inputs: object, outputs: object, binary: bytes | None
) -> None:
    with contextlib.suppress(ServePruneError):
        decode({"inputs": inputs, "outputs": outputs}, binary)


@given(st.binary(max_size=60), st.none() | st.integers(-2, 70))
def test_foreign_bytes_are_refused_with_a_message(body: bytes, header_length: int | None) -> None:
    with pytest.raises(InvalidArgument):
        decode_request(body, header_length=header_length, model="m")


def response(*outputs: Tensor, id_: str | None = None) -> InferenceResponse:
    return InferenceResponse("m@int8", "3", outputs, "int8", "asked for", id_)


FLOATS = Tensor("y", Datatype.FP32, np.array([[0.1, 2.0], [3.5, -4.0]], dtype=np.float32))
TEXTS = Tensor("t", Datatype.BYTES, np.array([b"hi", "ü".encode()], dtype=object))


def test_answer_is_json_alone_when_nothing_is_wanted_in_binary() -> None:
    parts, length = encode_response(response(FLOATS, TEXTS, id_="7"), OutputFormat())

    assert length is None
    assert orjson.loads(b"".join(parts)) == {
        "model_name": "m@int8",
        "model_version": "3",
        "id": "7",
        "parameters": {"tier": "int8", "tier_reason": "asked for"},
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [0.1, 2.0, 3.5, -4.0]},
            {"name": "t", "datatype": "BYTES", "shape": [2], "data": ["hi", "ü"]},
        ],
    }


def test_answer_has_no_id_when_the_request_had_none() -> None:
    parts, _ = encode_response(response(), OutputFormat())

    assert "id" not in orjson.loads(b"".join(parts))


def test_answer_carries_binary_outputs_after_the_json_in_their_order() -> None:
    output_format = OutputFormat(binary=True, by_name={"t": False})
    raw = Tensor("raw", Datatype.BYTES, np.array([b"\xff"], dtype=object))

    parts, length = encode_response(response(FLOATS, TEXTS, raw), output_format)

    body = b"".join(parts)
    assert length is not None
    document = orjson.loads(body[:length])
    assert document["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}},
        {"name": "t", "datatype": "BYTES", "shape": [2], "data": ["hi", "ü"]},
        {"name": "raw", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}},
    ]
    assert body[length:] == struct.pack("<4f", 0.1, 2.0, 3.5, -4.0) + b"\x01\0\0\0\xff"


def test_answer_says_the_length_of_its_json_when_its_only_binary_output_is_empty() -> None:
    parts, length = encode_response(
        response(Tensor("y", Datatype.FP32, np.zeros((0, 2), dtype=np.float32))), OutputFormat(binary=True)
    )

    assert length == sum(map(len, parts))
