import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serveprune.errors import InvalidArgument
from serveprune.frontends.grpc.field_count import check_field_count
from serveprune.frontends.grpc.pb import open_inference_pb2 as pb

FEW = 100


def request(**contents: object) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m" * 2**16)
    message.inputs.add(name="x", datatype="BYTES", shape=[1], contents=contents)
    return message


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x2a\x00" * 200_000,  # inputs
        b"\x32\x00" * 200_000,  # outputs
        b"\x3a\x00" * 200_000,  # raw contents
        b"\x22\x00" * 200_000,  # parameters
        request(bytes_contents=[b""] * 200_000).SerializeToString(),
    ],
    ids=["inputs", "outputs", "raw contents", "parameters", "elements"],
)
def test_message_is_refused_when_it_has_more_fields_than_any_request(bomb: bytes) -> None:
    with pytest.raises(InvalidArgument, match="at most 100000 fields"):
        check_field_count(bomb, limit=100_000)
    check_field_count(bomb)


def test_elements_of_a_packed_tensor_do_not_count() -> None:
    for contents in ({"fp32_contents": np.zeros(10**6, np.float32)}, {"int64_contents": [1] * 10**6}):
        check_field_count(request(**contents).SerializeToString(), limit=FEW)
    message = request()
    message.raw_input_contents.append(bytes(10**6))
    check_field_count(message.SerializeToString(), limit=FEW)


def test_small_message_is_not_looked_at() -> None:
    check_field_count(b"\x2a\x00" * 1000, limit=FEW)


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 3))
def test_what_is_no_message_is_left_to_the_parser(noise: bytes, lead: int) -> None:
    # Never another error than the refusal, and never for ever.
    with contextlib.suppress(InvalidArgument):
        check_field_count(noise + b"\x3a\xff\xff\x7f"[:lead] + bytes(2**16), limit=FEW)
