import subprocess
import sys
from pathlib import Path

import pytest

from serveprune.frontends.grpc.pb import open_inference_pb2 as pb

REPOSITORY = Path(__file__).resolve().parents[4]

# From the published specification and Triton's repository extension, not from our .proto.
FIELD_NUMBERS = {
    "ServerLiveResponse": {"live": 1},
    "ServerReadyResponse": {"ready": 1},
    "ModelReadyRequest": {"name": 1, "version": 2},
    "ModelReadyResponse": {"ready": 1},
    "ServerMetadataResponse": {"name": 1, "version": 2, "extensions": 3},
    "ModelMetadataRequest": {"name": 1, "version": 2},
    "ModelMetadataResponse": {
        "name": 1,
        "versions": 2,
        "platform": 3,
        "inputs": 4,
        "outputs": 5,
        "properties": 6,
    },
    "ModelMetadataResponse.TensorMetadata": {"name": 1, "datatype": 2, "shape": 3},
    "ModelInferRequest": {
        "model_name": 1,
        "model_version": 2,
        "id": 3,
        "parameters": 4,
        "inputs": 5,
        "outputs": 6,
        "raw_input_contents": 7,
    },
    "ModelInferRequest.InferInputTensor": {"name": 1, "datatype": 2, "shape": 3, "parameters": 4, "contents": 5},
    "ModelInferRequest.InferRequestedOutputTensor": {"name": 1, "parameters": 2},
    "ModelInferResponse": {
        "model_name": 1,
        "model_version": 2,
        "id": 3,
        "parameters": 4,
        "outputs": 5,
        "raw_output_contents": 6,
    },
    "ModelInferResponse.InferOutputTensor": {"name": 1, "datatype": 2, "shape": 3, "parameters": 4, "contents": 5},
    "InferParameter": {
        "bool_param": 1,
        "int64_param": 2,
        "string_param": 3,
        "double_param": 4,
        "uint64_param": 5,
    },
    "InferTensorContents": {
        "bool_contents": 1,
        "int_contents": 2,
        "int64_contents": 3,
        "uint_contents": 4,
        "uint64_contents": 5,
        "fp32_contents": 6,
        "fp64_contents": 7,
        "bytes_contents": 8,
    },
    "RepositoryIndexRequest": {"repository_name": 1, "ready": 2},
    "RepositoryIndexResponse": {"models": 1},
    "RepositoryIndexResponse.ModelIndex": {"name": 1, "version": 2, "state": 3, "reason": 4},
    "RepositoryModelLoadRequest": {"repository_name": 1, "model_name": 2, "parameters": 3},
    "RepositoryModelUnloadRequest": {"repository_name": 1, "model_name": 2, "parameters": 3},
}


@pytest.mark.parametrize("name", FIELD_NUMBERS)
def test_field_numbers_are_those_of_the_specification(name: str) -> None:
    message = pb.POOL.FindMessageTypeByName(f"inference.{name}")

    assert {field.name: field.number for field in message.fields} == FIELD_NUMBERS[name]


def test_request_has_the_bytes_of_the_specification() -> None:
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"\x07"])
    request.inputs.add(name="x", datatype="UINT8", shape=[1, -1])

    # Worked by hand: tag, length, content of each field.
    tensor = b"\x0a\x01x" + b"\x12\x05UINT8" + b"\x1a\x0b\x01" + b"\xff" * 9 + b"\x01"
    assert request.SerializeToString() == b"\x0a\x01m" + b"\x2a" + bytes([len(tensor)]) + tensor + b"\x3a\x01\x07"


def test_generated_code_is_what_the_generator_writes() -> None:
    pytest.importorskip("grpc_tools", reason="the generator needs grpcio-tools")
    ended = subprocess.run(
        [sys.executable, REPOSITORY / "deploy" / "generate_protos.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
