import struct

import numpy as np
import pytest

from serveprune.frontends.grpc.encoding import encode_response, set_parameter
from serveprune.frontends.grpc.pb import open_inference_pb2 as pb
from serveprune.oip.datatype import Datatype
from serveprune.oip.messages import InferenceResponse, Parameter
from serveprune.oip.tensor import Tensor


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (True, "bool_param"),
        (-(2**63), "int64_param"),
        (2**63 - 1, "int64_param"),
        (2**63, "uint64_param"),
        (0.5, "double_param"),
        ("ü", "string_param"),
    ],
)
def test_parameter_lies_in_the_field_of_its_type(value: Parameter, field: str) -> None:
    parameter = pb.InferParameter()
    set_parameter(parameter, value)

    assert parameter.WhichOneof("parameter_choice") == field
    assert getattr(parameter, field) == value


def test_outputs_are_raw_in_their_order() -> None:
    words = np.array([b"boot", b""], dtype=object)
    numbers = np.array([[1.5], [2.5]], dtype=np.float32)
    outputs = (Tensor.of("words", words), Tensor("numbers", Datatype.FP32, numbers))

    serialized = encode_response(InferenceResponse("m@int8", "3", outputs, "int8", "asked for", "7"))
    message = pb.ModelInferResponse.FromString(serialized)

    assert (message.model_name, message.model_version, message.id) == ("m@int8", "3", "7")
    assert [(output.name, output.datatype, list(output.shape)) for output in message.outputs] == [
        ("words", "BYTES", [2]),
        ("numbers", "FP32", [2, 1]),
    ]
    assert not any(output.HasField("contents") for output in message.outputs)
    assert list(message.raw_output_contents) == [b"\x04\0\0\0boot\0\0\0\0", struct.pack("<2f", 1.5, 2.5)]
    assert {name: value.string_param for name, value in message.parameters.items()} == {
        "tier": "int8",
        "tier_reason": "asked for",
    }
