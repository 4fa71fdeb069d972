"""Contract cases as HTTP requests, and HTTP answers as tensors."""

import json
from collections.abc import Mapping
from typing import Any

import httpx
import orjson

from contract.cases import Case, ElementsCase, WireTensor
from serveprune.oip.binary_tensors import decode_binary
from serveprune.oip.datatype import Datatype
from serveprune.oip.json_tensors import decode_json_data

STATUS = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "FAILED_PRECONDITION": 409,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "DATA_LOSS": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


def path(case: Case) -> str:
    version = f"/versions/{case.version}" if case.version else ""
    return f"/v2/models/{case.model}{version}/infer"


def json_message(case: Case) -> tuple[bytes, dict[str, str]]:
    """Everything in JSON, with nothing but what the protocol asks for."""
    document = _document(case, [_json_input(tensor) for tensor in case.inputs])
    if case.outputs:
        document["outputs"] = [{"name": name} for name in case.outputs]
    _add_parameters(document, case)
    return orjson.dumps(document), _headers(case)


def elements_message(case: ElementsCase) -> bytes:
    """JSON as Python's own module writes it, NaN and Infinity included."""
    given = {"name": "x", "datatype": case.datatype, "shape": list(case.shape), "data": case.elements}
    return json.dumps({"inputs": [given]}).encode()


def binary_message(case: Case) -> tuple[bytes, dict[str, str]]:
    """All tensors in binary form, both ways."""
    document = _document(case, [_binary_input(tensor) for tensor in case.inputs])
    if case.outputs:
        document["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in case.outputs]
    else:
        document.setdefault("parameters", {})["binary_data_output"] = True
    _add_parameters(document, case)
    text = orjson.dumps(document)
    headers = _headers(case) | {"Inference-Header-Content-Length": str(len(text))}
    return b"".join([text, *(tensor.content for tensor in case.inputs)]), headers


def _headers(case: Case) -> dict[str, str]:
    return {"x-compression-tier": case.tier} if case.tier else {}


def _document(case: Case, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {"inputs": inputs}
    if case.id is not None:
        document["id"] = case.id
    if case.parameters:
        document["parameters"] = dict(case.parameters)
    return document


def _add_parameters(document: dict[str, Any], case: Case) -> None:
    for kind, parameters in (("inputs", case.input_parameters), ("outputs", case.output_parameters)):
        if parameters:
            document[kind][0].setdefault("parameters", {}).update(parameters)


def _declaration(tensor: WireTensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _json_input(tensor: WireTensor) -> dict[str, Any]:
    elements = tensor.array.tolist()
    if tensor.datatype == Datatype.BYTES:
        elements = [[element.decode() for element in row] for row in elements]
    return {**_declaration(tensor), "data": elements}


def _binary_input(tensor: WireTensor) -> dict[str, Any]:
    return {**_declaration(tensor), "parameters": {"binary_data_size": len(tensor.content)}}


def outputs(answer: httpx.Response) -> tuple[list[WireTensor], Mapping[str, Any]]:
    """Return the outputs, whichever form they came in, and the JSON."""
    length = answer.headers.get("inference-header-content-length")
    split = len(answer.content) if length is None else int(length)
    document = orjson.loads(answer.content[:split])
    rest, tensors = answer.content[split:], []
    for entry in document["outputs"]:
        name, datatype, shape = entry["name"], Datatype(entry["datatype"]), tuple(entry["shape"])
        if "data" in entry:
            tensor = decode_json_data(entry["data"], name=name, datatype=datatype, shape=shape)
        else:
            size = entry["parameters"]["binary_data_size"]
            tensor = decode_binary(memoryview(rest[:size]), name=name, datatype=datatype, shape=shape)
            rest = rest[size:]
        tensors.append(WireTensor.of(name, tensor.array, datatype=datatype))
    assert rest == b""
    return tensors, document
