"""Every client of the protocol brings messages of the same names; ours must live beside them."""

import subprocess
import sys

import pytest
from google.protobuf import descriptor_pool

from serveprune.frontends.grpc.pb import open_inference_pb2 as pb

# What importing tritonclient, kserve or another client does: the same package and names in the pool of the
# process, with other fields, in files that may be called as ours.
FOREIGN = """
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
for name, package in (("open_inference.proto", "inference"), ("grpc_service.proto", "elsewhere")):
    file = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3")
    message = file.message_type.add(name="ModelInferRequest")
    field = message.field.add(name="other", number=1)
    field.type, field.label = field.TYPE_INT32, field.LABEL_OPTIONAL
    file.service.add(name="GRPCInferenceService")
    descriptor_pool.Default().Add(file)
Foreign = message_factory.GetMessageClass(
    descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")
)
assert Foreign.FromString(Foreign(other=7).SerializeToString()).other == 7
"""
OURS = """
from serveprune.frontends.grpc import server
from serveprune.frontends.grpc.pb import open_inference_pb2, open_inference_pb2_grpc
request = open_inference_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b"x"])
request.inputs.add(name="x", datatype="UINT8", shape=[1])
assert open_inference_pb2.ModelInferRequest.FromString(request.SerializeToString()) == request
"""


@pytest.mark.parametrize("program", [FOREIGN + OURS, OURS + FOREIGN], ids=["foreign first", "ours first"])
def test_foreign_messages_of_the_same_names_live_in_the_same_process(program: str) -> None:
    ended = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr


def test_messages_are_not_in_the_pool_of_the_process() -> None:
    assert pb.DESCRIPTOR.pool is not descriptor_pool.Default()
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")
