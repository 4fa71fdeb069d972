"""Inference requests and answers in JSON, with or without binary tensor data behind it.

Knows no HTTP: whoever carries the bytes says how many of them are JSON.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from serveprune.errors import InvalidArgument, Unimplemented
from serveprune.oip.binary_tensors import checked_shape, decode_binary, encode_binary
from serveprune.oip.datatype import Datatype
from serveprune.oip.json_tensors import decode_json_data, encode_json_data
from serveprune.oip.messages import InferenceRequest, InferenceResponse, Parameter
from serveprune.oip.output_format import OutputFormat
from serveprune.oip.parameters import byte_count, decode_parameters, flag, kind
from serveprune.oip.tensor import Tensor

Body = bytes | bytearray | memoryview

_NO_PARAMETERS: Mapping[str, Parameter] = {}
_NOTHING = memoryview(b"")


def decode_request(
    body: Body,
    *,
    header_length: int | None,
    model: str,
    version: str | None = None,
    tier: str | None = None,
    deadline: float | None = None,
    max_latency_ms: str | None = None,
    min_quality: str | None = None,
    headers: Sequence[tuple[bytes | str, bytes | str]] = (),
) -> tuple[InferenceRequest, OutputFormat]:
    """Decode an inference request. Arrays of binary inputs share the memory of ``body`` where they can.

    ``header_length`` counts the bytes of JSON before the binary tensor data; it is ``None`` when all of the
    body is JSON. What follows it comes from the transport and is handed through. Keys the protocol does not know
    are ignored.

    Raises:
        InvalidArgument: The body is no request.
        Unimplemented: It asks for shared memory or classification.
    """
    text, binary = _divide(body, header_length)
    return decode_document(
        parse_object(text, where="request"),
        binary=None if header_length is None else binary,
        model=model,
        version=version,
        tier=tier,
        deadline=deadline,
        max_latency_ms=max_latency_ms,
        min_quality=min_quality,
        headers=headers,
    )


def decode_document(
    document: Mapping[str, Any],
    *,
    binary: memoryview | None,
    model: str,
    version: str | None = None,
    tier: str | None = None,
    deadline: float | None = None,
    max_latency_ms: str | None = None,
    min_quality: str | None = None,
    headers: Sequence[tuple[bytes | str, bytes | str]] = (),
) -> tuple[InferenceRequest, OutputFormat]:
    """Decode a request whose JSON has been parsed, with what follows it if the transport can carry that.

    Raises:
        InvalidArgument: The document is no request.
        Unimplemented: It asks for shared memory or classification.
    """
    parameters = decode_parameters(document.get("parameters"), where="parameters")
    inputs = _decode_inputs(
        document.get("inputs"), _NOTHING if binary is None else binary, carries_binary=binary is not None
    )
    names, binary_by_name = _decode_outputs(document.get("outputs"))
    binary_by_default = "binary_data_output" in parameters and flag(
        parameters["binary_data_output"], where="parameters.binary_data_output"
    )
    request = InferenceRequest(
        model=model,
        inputs=inputs,
        version=version,
        id=_decode_id(document.get("id")),
        outputs=names,
        parameters=parameters,
        tier=tier,
        deadline=deadline,
        max_latency_ms=max_latency_ms,
        min_quality=min_quality,
        headers=headers,
    )
    return request, OutputFormat(binary_by_default, binary_by_name)


def encode_response(
    response: InferenceResponse, output_format: OutputFormat
) -> tuple[list[bytes | memoryview], int | None]:
    """Encode an answer as the parts of a body, JSON first, and the length of the JSON.

    The length is ``None`` when there is nothing but JSON.

    Raises:
        InvalidArgument: An output cannot be said in JSON.
    """
    outputs: list[dict[str, Any]] = []
    binary: list[bytes | memoryview] = []
    carries_binary = False
    for tensor in response.outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype.value, "shape": tensor.shape}
        if output_format.is_binary(tensor.name):
            content = encode_binary(tensor.array, tensor.datatype)
            entry["parameters"] = {"binary_data_size": len(content)}
            binary.append(content)
            carries_binary = True
        else:
            entry["data"] = encode_json_data(tensor)
        outputs.append(entry)
    document: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id is not None:
        document["id"] = response.id
    document["parameters"] = response.parameters
    document["outputs"] = outputs
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return [text, *binary], len(text) if carries_binary else None


def parse_object(text: Body, *, where: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        InvalidArgument: It is no JSON, or no object.
    """
    document = parse_json(text, where=where)
    if not isinstance(document, dict):
        raise InvalidArgument(f"{where}: expected an object, got {kind(document)}")
    return document


def parse_json(text: Body, *, where: str) -> Any:
    """Parse JSON, whatever it holds.

    Raises:
        InvalidArgument: It is no JSON.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        # NaN and Infinity are the most frequent reason: Python's own json writes them.
        raise InvalidArgument(
            f"{where}: expected JSON in UTF-8, without NaN or Infinity (send those as binary tensor data); "
            f"{error.msg} at byte {error.pos}"
        ) from None


def _divide(body: Body, header_length: int | None) -> tuple[Body, memoryview]:
    if header_length is None:
        return body, _NOTHING
    view = memoryview(body)
    if not 0 < header_length <= len(view):
        raise InvalidArgument(
            f"expected a JSON header of 1 to {len(view)} bytes, the length of the body, "
            f"got a declared length of {header_length}"
        )
    return view[:header_length], view[header_length:]


def _decode_id(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InvalidArgument(f"id: expected a string, got {kind(value)}")
    return value


def _entries(value: object, *, where: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the named objects of ``inputs`` or ``outputs``."""
    if not isinstance(value, list):
        raise InvalidArgument(f"{where}: expected an array, got {'nothing' if value is None else kind(value)}")
    entries: dict[str, dict[str, Any]] = {}
    for index, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise InvalidArgument(f"{where}[{index}]: expected an object, got {kind(entry)}")
        name = entry.get("name")
        if not isinstance(name, str) or not name:
            raise InvalidArgument(f"{where}[{index}].name: expected a string that is not empty, got {name!r}")
        if name in entries:
            raise InvalidArgument(f"{where}[{index}]: {name!r} is named a second time; send it once")
        entries[name] = entry
    return list(entries.items())


def _decode_inputs(value: object, binary: memoryview, *, carries_binary: bool) -> tuple[Tensor, ...]:
    tensors, position = [], 0
    for name, entry in _entries(value, where="inputs"):
        where = f"input {name!r}"
        parameters = _NO_PARAMETERS
        if "parameters" in entry:
            parameters = decode_parameters(entry["parameters"], where=f"{where}: parameters")
            _refuse_shared_memory(parameters, where=where)
        datatype = _decode_datatype(entry.get("datatype"), where=where)
        shape = _decode_shape(entry.get("shape"), name=name)
        if "binary_data_size" not in parameters:
            if "data" not in entry:
                raise InvalidArgument(f"{where}: expected data, or the parameter binary_data_size; got neither")
            tensors.append(decode_json_data(entry["data"], name=name, datatype=datatype, shape=shape))
            continue
        if entry.get("data") is not None or not carries_binary:
            raise InvalidArgument(
                f"{where}: expected binary_data_size only instead of data, and only where the length of the JSON "
                "is declared (HTTP header Inference-Header-Content-Length)"
            )
        size = byte_count(parameters["binary_data_size"], where=f"{where}: binary_data_size")
        if size > len(binary) - position:
            raise InvalidArgument(
                f"{where}: expected at most the {len(binary) - position} bytes that are left in the body, got a "
                f"binary_data_size of {size}"
            )
        content = binary[position : position + size]
        tensors.append(decode_binary(content, name=name, datatype=datatype, shape=shape))
        position += size
    if position != len(binary):
        raise InvalidArgument(
            f"expected {position} bytes after the JSON, the sum of all binary_data_size, got {len(binary)}"
        )
    return tuple(tensors)


def _decode_datatype(value: object, *, where: str) -> Datatype:
    try:
        return Datatype.parse(value)
    except InvalidArgument as error:
        raise InvalidArgument(f"{where}: {error.message}") from None


def _decode_shape(value: object, *, name: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise InvalidArgument(f"input {name!r}: expected an array as shape, got {kind(value)}")
    return checked_shape(value, name=name)


def _decode_outputs(value: object) -> tuple[tuple[str, ...], dict[str, bool]]:
    if value is None:
        return (), {}
    names, binary_by_name = [], {}
    for name, entry in _entries(value, where="outputs"):
        where = f"output {name!r}"
        parameters = decode_parameters(entry.get("parameters"), where=f"{where}: parameters")
        _refuse_shared_memory(parameters, where=where)
        if parameters.get("classification"):
            raise Unimplemented(f"{where}: the classification extension is not supported; ask for the tensor")
        if "binary_data" in parameters:
            binary_by_name[name] = flag(parameters["binary_data"], where=f"{where}: binary_data")
        names.append(name)
    return tuple(names), binary_by_name


def _refuse_shared_memory(parameters: Mapping[str, Parameter], *, where: str) -> None:
    if "shared_memory_region" in parameters:
        raise Unimplemented(f"{where}: shared memory is not supported; send and ask for the tensor itself")
