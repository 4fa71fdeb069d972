from typing import Any

import numpy as np
import pytest

from serveprune.errors import InvalidArgument, Unimplemented
from serveprune.frontends.grpc.decoding import decode_request
from serveprune.frontends.grpc.pb import open_inference_pb2 as pb
from serveprune.oip.datatype import Datatype


def typed(datatype: str, field: str, values: list[Any], *, shape: list[int] | None = None) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=[len(values)] if shape is None else shape)
    getattr(tensor.contents, field).extend(values)
    return message


def raw(*contents: bytes, names: str) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=contents)
    for name in names:
        message.inputs.add(name=name, datatype="UINT8", shape=[1])
    return message


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-(2**15), 2**15 - 1]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 2**16 - 1]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, -2.0]),
        ("FP64", "fp64_contents", [0.1, 1e300]),
        ("BYTES", "bytes_contents", [b"", b"\x00\xff"]),
    ],
)
def test_typed_contents_become_an_array_of_the_datatype(datatype: str, field: str, values: list[Any]) -> None:
    (tensor,) = decode_request(typed(datatype, field, values, shape=[1, 2])).inputs

    assert tensor.name == "x"
    assert tensor.datatype is Datatype(datatype)
    assert tensor.array.dtype == Datatype(datatype).dtype
    assert tensor.shape == (1, 2)
    assert tensor.array.ravel().tolist() == values


@pytest.mark.parametrize(
    ("datatype", "field", "value"),
    [
        ("INT8", "int_contents", 128),
        ("INT8", "int_contents", -129),
        ("INT16", "int_contents", 2**15),
        ("UINT8", "uint_contents", 256),
        ("UINT16", "uint_contents", 2**16),
    ],
)
def test_typed_contents_are_refused_when_a_value_does_not_fit(datatype: str, field: str, value: int) -> None:
    with pytest.raises(InvalidArgument, match=f"{value} does not fit into {datatype}"):
        decode_request(typed(datatype, field, [0, value]))


def test_typed_contents_are_refused_when_they_lie_in_another_field() -> None:
    with pytest.raises(InvalidArgument, match="'x': expected fp32_contents for FP32, got fp64_contents"):
        decode_request(typed("FP32", "fp64_contents", [1.0]))


@pytest.mark.parametrize("shape", [[3], [2, 2], [], [2**39]])
def test_typed_contents_are_refused_when_their_number_is_not_the_shapes(shape: list[int]) -> None:
    with pytest.raises(InvalidArgument, match=r"elements in fp32_contents for shape .*, got 2"):
        decode_request(typed("FP32", "fp32_contents", [1.0, 2.0], shape=shape))


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_is_refused_when_it_is_not_raw(datatype: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{datatype} has no typed form; send raw_input_contents"):
        decode_request(typed(datatype, "fp32_contents", [1.0]))


def test_input_is_refused_when_it_has_no_contents_at_all() -> None:
    with pytest.raises(InvalidArgument, match="expected 1 elements in fp32_contents"):
        decode_request(typed("FP32", "fp32_contents", [], shape=[1]))


def test_empty_input_is_decoded_when_its_shape_says_so() -> None:
    (tensor,) = decode_request(typed("FP32", "fp32_contents", [], shape=[0, 3])).inputs

    assert tensor.shape == (0, 3)


def test_raw_contents_are_not_copied() -> None:
    message = raw(b"\x07", names="x")

    (tensor,) = decode_request(message).inputs

    assert tensor.array.tolist() == [7]
    assert not tensor.array.flags.owndata


def test_raw_and_typed_contents_are_refused_together() -> None:
    message = raw(b"\x01", b"\x02", names="xy")
    message.inputs[1].contents.uint_contents.append(2)

    with pytest.raises(InvalidArgument, match="'y' has contents in a request with raw_input_contents"):
        decode_request(message)


def test_empty_contents_beside_raw_ones_are_no_second_form() -> None:
    message = raw(b"\x01", names="x")
    message.inputs[0].contents.SetInParent()

    assert decode_request(message).inputs[0].array.tolist() == [1]


@pytest.mark.parametrize("contents", [(b"\x01",), (b"\x01", b"\x02", b"\x03")])
def test_raw_contents_are_refused_when_they_are_not_one_per_input(contents: tuple[bytes, ...]) -> None:
    with pytest.raises(InvalidArgument, match=f"one entry of raw_input_contents per input, 2, got {len(contents)}"):
        decode_request(raw(*contents, names="xy"))


def test_input_is_refused_when_it_is_sent_twice() -> None:
    with pytest.raises(InvalidArgument, match="input 'x' is sent twice"):
        decode_request(raw(b"\x01", b"\x02", names="xx"))


def test_parameter_is_refused_when_it_has_no_value() -> None:
    message = raw(b"\x01", names="x")
    message.parameters["tier"].SetInParent()

    with pytest.raises(InvalidArgument, match="parameter 'tier'"):
        decode_request(message)


def test_classification_is_refused_with_the_reason() -> None:
    message = raw(b"\x01", names="x")
    message.outputs.add(name="y").parameters["classification"].int64_param = 3

    with pytest.raises(Unimplemented, match="'y': the classification extension"):
        decode_request(message)


def test_empty_version_and_id_are_none() -> None:
    request = decode_request(raw(b"\x01", names="x"))

    assert (request.version, request.id, request.tier, request.outputs) == (None, None, None, ())


def test_tier_comes_from_the_metadata() -> None:
    message = raw(b"\x01", names="x")

    assert decode_request(message, metadata=(("user-agent", "t"), ("x-compression-tier", "int8"))).tier == "int8"
    assert decode_request(message, metadata=(("x-compression-tier", "a"), ("x-compression-tier", "a"))).tier == "a"


def test_sizes_are_checked_before_anything_is_allocated() -> None:
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"\0" * 4])
    message.inputs.add(name="x", datatype="FP32", shape=[2**62, np.int64(4).item()])

    with pytest.raises(InvalidArgument, match="'x'"):
        decode_request(message)


def test_message_is_refused_when_it_asks_for_an_output_twice() -> None:
    message = raw(b"a", names="x")
    for name in ("y", "z", "y"):
        message.outputs.add(name=name)

    with pytest.raises(InvalidArgument, match="output 'y' is asked for twice"):
        decode_request(message)


def test_objective_is_read_from_metadata_as_it_is_written() -> None:
    metadata = (("x-max-latency-ms", "50"), ("x-min-quality", "0.95"), ("x-compression-tier", "int8"), ("x-other", "1"))

    request = decode_request(raw(b"\x01", names="x"), metadata=metadata)

    assert (request.max_latency_ms, request.min_quality, request.tier) == ("50", "0.95", "int8")


@pytest.mark.parametrize("name", ["x-compression-tier", "x-max-latency-ms", "x-min-quality"])
def test_metadata_is_refused_when_it_says_two_things(name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"metadata {name}: expected one value, got 1, 2"):
        decode_request(raw(b"\x01", names="x"), metadata=((name, "2"), (name, "1")))

    assert decode_request(raw(b"\x01", names="x"), metadata=((name, "2"), (name, "2"))).parameters == {}
