from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from contract.cases import Case, ElementsCase, WireTensor, identity_model
from serveprune.frontends.grpc.pb import open_inference_pb2 as pb
from serveprune.oip.datatype import Datatype
from serveprune.oip.messages import Parameter
from serveprune.oip.tensor import Array

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def raw_message(case: Case) -> pb.ModelInferRequest:
    message = _message(case)
    message.raw_input_contents.extend(tensor.content for tensor in case.inputs)
    return message


def typed_message(case: Case) -> pb.ModelInferRequest:
    message = _message(case)
    for declared, tensor in zip(message.inputs, case.inputs, strict=True):
        getattr(declared.contents, CONTENTS[tensor.datatype]).extend(tensor.array.ravel().tolist())
    return message


def elements_message(case: ElementsCase) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=identity_model(Datatype(case.datatype)))
    given = message.inputs.add(name="x", datatype=case.datatype, shape=case.shape)
    assert case.contents is not None
    assert isinstance(case.elements, list)
    elements = [one.encode() if isinstance(one, str) else one for one in case.elements]
    getattr(given.contents, case.contents).extend(elements)
    return message


def has_typed_form(case: Case) -> bool:
    return all(tensor.datatype in CONTENTS for tensor in case.inputs)


def of_arrays(model: str, **arrays: Array) -> pb.ModelInferRequest:
    return raw_message(Case("", model, tuple(WireTensor.of(name, array) for name, array in arrays.items())))


def metadata(case: Case) -> Sequence[tuple[str, str]]:
    return (("x-compression-tier", case.tier),) if case.tier else ()


def outputs(answer: pb.ModelInferResponse) -> tuple[WireTensor, ...]:
    return tuple(
        WireTensor(output.name, output.datatype, tuple(output.shape), content)
        for output, content in zip(answer.outputs, answer.raw_output_contents, strict=True)
    )


def floats(answer: pb.ModelInferResponse) -> list[Any]:
    return list(np.frombuffer(answer.raw_output_contents[0], dtype="<f4").tolist())


def _message(case: Case) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=case.model, model_version=case.version or "", id=case.id or "")
    for tensor in case.inputs:
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    for name in case.outputs:
        message.outputs.add(name=name)
    _add_parameters(message.parameters, case.parameters)
    if case.input_parameters:
        _add_parameters(message.inputs[0].parameters, case.input_parameters)
    if case.output_parameters:
        _add_parameters(message.outputs[0].parameters, case.output_parameters)
    return message


def _add_parameters(field: Any, parameters: Mapping[str, Parameter]) -> None:
    for name, value in parameters.items():
        field[name].CopyFrom(_parameter(value))


def _parameter(value: Parameter) -> pb.InferParameter:
    if isinstance(value, bool):
        return pb.InferParameter(bool_param=value)
    if isinstance(value, int):
        return pb.InferParameter(int64_param=value)
    if isinstance(value, float):
        return pb.InferParameter(double_param=value)
    return pb.InferParameter(string_param=value)
