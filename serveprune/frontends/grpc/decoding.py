"""From ``ModelInferRequest`` to the protocol-neutral request."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from serveprune.errors import InvalidArgument, Unimplemented
from serveprune.frontends.grpc.pb import open_inference_pb2 as pb
from serveprune.oip.binary_tensors import checked_shape, decode_binary
from serveprune.oip.datatype import Datatype
from serveprune.oip.messages import InferenceRequest, Parameter
from serveprune.oip.tensor import Array, Tensor

TIER_METADATA = "x-compression-tier"
_MAX_LATENCY_METADATA = "x-max-latency-ms"
_MIN_QUALITY_METADATA = "x-min-quality"
_METADATA = frozenset({TIER_METADATA, _MAX_LATENCY_METADATA, _MIN_QUALITY_METADATA})

Metadata = Sequence[tuple[str, str | bytes]]

_SIGNED = ("int_contents", np.dtype("<i4"))
_UNSIGNED = ("uint_contents", np.dtype("<u4"))
_CONTENTS = {
    Datatype.BOOL: ("bool_contents", np.dtype("?")),
    Datatype.INT8: _SIGNED,
    Datatype.INT16: _SIGNED,
    Datatype.INT32: _SIGNED,
    Datatype.INT64: ("int64_contents", np.dtype("<i8")),
    Datatype.UINT8: _UNSIGNED,
    Datatype.UINT16: _UNSIGNED,
    Datatype.UINT32: _UNSIGNED,
    Datatype.UINT64: ("uint64_contents", np.dtype("<u8")),
    Datatype.FP32: ("fp32_contents", np.dtype("<f4")),
    Datatype.FP64: ("fp64_contents", np.dtype("<f8")),
    Datatype.BYTES: ("bytes_contents", np.dtype("O")),
}
"""Where typed elements of a datatype lie, and as what; FP16 and BF16 have no typed form."""

_UNSUPPORTED = {
    "shared_memory_region": "shared memory is not supported; send the tensor in the message",
    "classification": "the classification extension is not supported; ask for the output itself",
}


def decode_request(
    message: pb.ModelInferRequest, *, metadata: Metadata = (), deadline: float | None = None
) -> InferenceRequest:
    """Return the request a message and its metadata hold; numbers in raw contents are not copied.

    Args:
        message: As it was parsed.
        metadata: Of the call; names are lower-case.
        deadline: On ``time.monotonic()``, if the caller has one.

    Raises:
        InvalidArgument: A tensor is not what its datatype and shape say, or a name is given twice.
        Unimplemented: The request needs an extension this server does not have.
    """
    said = _said(metadata)
    # By position: by name it takes more than twice as long.
    return InferenceRequest(
        message.model_name,
        _decode_inputs(message),
        message.model_version or None,
        message.id or None,
        _decode_outputs(message.outputs) if message.outputs else (),
        _decode_parameters(message.parameters) if message.parameters else {},
        said.get(TIER_METADATA),
        deadline,
        said.get(_MAX_LATENCY_METADATA),
        said.get(_MIN_QUALITY_METADATA),
        metadata,
    )


def _decode_outputs(outputs: Sequence[pb.ModelInferRequest.InferRequestedOutputTensor]) -> tuple[str, ...]:
    for wanted in outputs:
        _refuse_extensions(wanted.name, wanted.parameters)
    names = tuple(wanted.name for wanted in outputs)
    twice = _repeated(names)
    if twice is not None:
        raise InvalidArgument(f"output {twice!r} is asked for twice; expected each output once")
    return names


def _repeated(names: Sequence[str]) -> str | None:
    if len(set(names)) == len(names):
        return None
    return next(name for name, times in Counter(names).items() if times > 1)


def _decode_inputs(message: pb.ModelInferRequest) -> tuple[Tensor, ...]:
    tensors = list(message.inputs)
    for tensor in tensors:
        if tensor.parameters:
            _refuse_extensions(tensor.name, tensor.parameters)
    twice = _repeated([tensor.name for tensor in tensors]) if len(tensors) > 1 else None
    if twice is not None:
        raise InvalidArgument(f"input {twice!r} is sent twice; expected each input once")
    raw = message.raw_input_contents
    if not raw:
        return tuple(_decode_contents(tensor) for tensor in tensors)
    typed = [tensor.name for tensor in tensors if tensor.HasField("contents") and tensor.contents.ListFields()]
    if typed:
        raise InvalidArgument(
            f"input {typed[0]!r} has contents in a request with raw_input_contents; send all inputs in one form"
        )
    if len(raw) != len(tensors):
        raise InvalidArgument(f"expected one entry of raw_input_contents per input, {len(tensors)}, got {len(raw)}")
    return tuple(
        [
            decode_binary(
                memoryview(content),
                name=tensor.name,
                datatype=Datatype.parse(tensor.datatype),
                shape=tensor.shape,
            )
            for tensor, content in zip(tensors, raw, strict=True)
        ]
    )


def _decode_contents(tensor: pb.ModelInferRequest.InferInputTensor) -> Tensor:
    datatype = Datatype.parse(tensor.datatype)
    shape = checked_shape(tensor.shape, name=tensor.name)
    if datatype not in _CONTENTS:
        raise InvalidArgument(f"input {tensor.name!r}: {datatype} has no typed form; send raw_input_contents")
    field, wire = _CONTENTS[datatype]
    others = [present.name for present, _ in tensor.contents.ListFields() if present.name != field]
    if others:
        raise InvalidArgument(f"input {tensor.name!r}: expected {field} for {datatype}, got {others[0]}")
    values = getattr(tensor.contents, field)
    # Before anything is allocated: the shape is only a client's claim.
    if len(values) != math.prod(shape):
        raise InvalidArgument(
            f"input {tensor.name!r}: expected {math.prod(shape)} elements in {field} for shape {list(shape)}, "
            f"got {len(values)}"
        )
    array: Array = np.fromiter(values, dtype=wire, count=len(values))
    return Tensor(tensor.name, datatype, _narrowed(array, name=tensor.name, datatype=datatype).reshape(shape))


def _narrowed(array: Array, *, name: str, datatype: Datatype) -> Array:
    """Return 32-bit integers as the 8 or 16 bits the datatype has."""
    if array.dtype == datatype.dtype:
        return array
    narrow = array.astype(datatype.dtype)
    lost = array[narrow != array]
    if lost.size:
        raise InvalidArgument(f"input {name!r}: {lost[0]} does not fit into {datatype}")
    return narrow


def _decode_parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Parameter]:
    decoded: dict[str, Parameter] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidArgument(f"parameter {name!r}: expected a value, got none")
        decoded[name] = getattr(parameter, choice)
    return decoded


def _refuse_extensions(name: str, parameters: Mapping[str, pb.InferParameter]) -> None:
    for parameter in parameters:
        if parameter in _UNSUPPORTED:
            raise Unimplemented(f"{name!r}: {_UNSUPPORTED[parameter]}")


def _said(metadata: Metadata) -> dict[str, str]:
    """Return what the metadata that means something to the server says."""
    said: dict[str, str] = {}
    for name, value in metadata:
        if name in _METADATA and said.setdefault(name, str(value)) != str(value):
            values = ", ".join(sorted((said[name], str(value))))
            raise InvalidArgument(f"metadata {name}: expected one value, got {values}")
    return said
