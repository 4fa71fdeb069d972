"""From the protocol-neutral answers to protobuf messages."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from serveprune.frontends.grpc.pb import open_inference_pb2 as pb
from serveprune.oip.binary_tensors import encode_binary
from serveprune.oip.messages import InferenceResponse, ModelMetadata, Parameter, RepositoryEntry, ServerMetadata
from serveprune.oip.tensor import TensorSpec

_INT64_MAX = 2**63 - 1

_SHARED = 256
"""Beginnings of answers that are kept: one for each reason for a tier, which adaptive deployments give in figures."""


def encode_response(response: InferenceResponse) -> bytes:
    """Return the serialized ``ModelInferResponse`` for an answer, its tensors in ``raw_output_contents``.

    Of two serialized messages one after the other protobuf makes one message with the fields of both, so what many
    answers share is serialized once.
    """
    own = pb.ModelInferResponse()
    if response.id is not None:
        own.id = response.id
    for tensor in response.outputs:
        own.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
        own.raw_output_contents.append(bytes(encode_binary(tensor.array, tensor.datatype)))
    return _shared(response.model, response.version, response.tier, response.tier_reason) + own.SerializeToString()


@lru_cache(maxsize=_SHARED)
def _shared(model: str, version: str, tier: str, tier_reason: str) -> bytes:
    answer = InferenceResponse(model, version, (), tier, tier_reason)
    message = pb.ModelInferResponse(model_name=model, model_version=version)
    for name, value in answer.parameters.items():
        set_parameter(message.parameters[name], value)
    return message.SerializeToString()


def set_parameter(parameter: pb.InferParameter, value: Parameter) -> None:
    """Set the field that fits a value's type."""
    if isinstance(value, str):
        parameter.string_param = value
    elif isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    elif value > _INT64_MAX:
        parameter.uint64_param = value
    else:
        parameter.int64_param = value


def encode_server_metadata(metadata: ServerMetadata) -> pb.ServerMetadataResponse:
    """Return the message for the server's metadata."""
    return pb.ServerMetadataResponse(name=metadata.name, version=metadata.version, extensions=metadata.extensions)


def encode_model_metadata(metadata: ModelMetadata) -> pb.ModelMetadataResponse:
    """Return the message for a model's metadata."""
    return pb.ModelMetadataResponse(
        name=metadata.name,
        versions=metadata.versions,
        platform=metadata.platform,
        inputs=_encode_specs(metadata.inputs),
        outputs=_encode_specs(metadata.outputs),
        properties=metadata.properties,
    )


def encode_index(entries: Iterable[RepositoryEntry]) -> pb.RepositoryIndexResponse:
    """Return the message for the repository index."""
    lines = [
        pb.RepositoryIndexResponse.ModelIndex(
            name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
        )
        for entry in entries
    ]
    return pb.RepositoryIndexResponse(models=lines)


def _encode_specs(specs: Sequence[TensorSpec]) -> list[pb.ModelMetadataResponse.TensorMetadata]:
    return [
        pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        for spec in specs
    ]
