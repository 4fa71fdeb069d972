"""The contract table inside TorchServe, as far as its protocol goes.

Models have no tiers in their names there, and tensors no binary form in the protocol's: `.npy` and safetensors stand
for it.
"""

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import numpy as np
import pytest
from contract.cases import ANSWERED, CONTRADICTING, ELEMENTS, EXTENSIONS, REFUSED, Case, ElementsCase, WireTensor
from contract.http.messages import STATUS, elements_message, json_message, outputs
from safetensors.numpy import load, save

from e2e.deployment import write_config
from e2e.graphs import write_contract_models
from e2e.test_contract_cases import REFUSED_HERE
from e2e.torchserve.hosted import HostedTorchServe, package
from e2e.torchserve.messages import prediction_of, predictions_request
from serveprune.oip.datatype import Datatype
from serveprune.oip.json_tensors import decode_json_data

# One worker each, so not all that there are.
MODELS = (
    "add",
    *(f"identity_{name}" for name in ("bool", "bytes", "fp16", "fp32", "fp64", "int8", "int64", "uint16", "uint64")),
)
JSON = {"content-type": "application/json"}


def _is_asked_here(case: Case) -> bool:
    return "@" not in case.model and case.model in (*MODELS, "nobody") and case.served_tier == "dense"


def _is_json(case: Case) -> bool:
    return _is_asked_here(case) and case.has_json_form


ANSWERED_HERE = [case for case in ANSWERED if _is_json(case)]
# What is sent twice contradicts itself in JSON, too.
TWICE = [case for case in CONTRADICTING if "twice" in case.name]
REFUSED_IN_JSON = [case for case in (*REFUSED, *EXTENSIONS, *TWICE, *REFUSED_HERE) if "no text" not in case.name]
REFUSALS = [case for case in REFUSED_IN_JSON if _is_json(case)]
REFUSED_BY_HANDLER = [
    case
    for case in REFUSALS
    # Over gRPC there is no header that could disagree: what stands for it is one place with the parameter.
    if case.model in MODELS and not case.version and not (case.tier and "tier" in case.parameters)
]
ELEMENTS_HERE = [case for case in ELEMENTS if f"identity_{case.datatype.lower()}" in MODELS]
BARE = [
    case
    for case in ANSWERED
    if _is_asked_here(case)
    and not (case.outputs or case.id or case.parameters or case.version)
    and all(tensor.datatype != Datatype.BYTES for tensor in case.inputs)
]
SINGLE = [case for case in BARE if len(case.inputs) == 1]


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostedTorchServe]:
    folder = tmp_path_factory.mktemp("contract")
    write_contract_models(folder)
    config = write_config(folder, models={name: {"source": {"onnx": f"{name}.onnx"}} for name in MODELS})
    for name in MODELS:
        package(config, name)
    with HostedTorchServe(folder, "--no-token-auth") as running:
        yield running.wait_ready()


@pytest.mark.parametrize("case", ANSWERED_HERE, ids=str)
def test_case_is_answered_over_http(hosted: HostedTorchServe, case: Case) -> None:
    body, headers = json_message(case)
    answer = hosted.http.post(_url(hosted, case), content=body, headers=JSON | headers)

    assert answer.status_code == 200, answer.text
    tensors, document = outputs(answer)
    assert tensors == list(case.expected)
    _check_envelope(document, case)
    assert answer.headers["x-compression-tier"] == "dense"


@pytest.mark.parametrize("case", ANSWERED_HERE, ids=str)
def test_case_is_answered_over_grpc(hosted: HostedTorchServe, channel: grpc.Channel, case: Case) -> None:
    document = _predict(channel, case)

    given = {each["name"]: each for each in document["outputs"]}
    assert list(given) == [tensor.name for tensor in case.expected]
    for tensor in case.expected:
        each = given[tensor.name]
        assert (each["datatype"], tuple(each["shape"])) == (tensor.datatype, tensor.shape)
        array = decode_json_data(
            each["data"], name=tensor.name, datatype=Datatype(tensor.datatype), shape=tensor.shape
        ).array
        assert WireTensor.of(tensor.name, array, datatype=Datatype(tensor.datatype)) == tensor
    _check_envelope(document, case)


@pytest.mark.parametrize("case", SINGLE, ids=str)
def test_case_is_answered_in_npy(hosted: HostedTorchServe, case: Case) -> None:
    stream = io.BytesIO()
    np.save(stream, case.inputs[0].array)
    answer = hosted.http.post(_url(hosted, case), content=stream.getvalue())

    assert answer.status_code == 200, answer.text
    (expected,) = case.expected
    assert WireTensor.of(expected.name, np.load(io.BytesIO(answer.content))) == expected


@pytest.mark.parametrize("case", BARE, ids=str)
def test_case_is_answered_in_safetensors(hosted: HostedTorchServe, case: Case) -> None:
    headers = {"x-compression-tier": case.tier} if case.tier else {}
    content = save({tensor.name: np.ascontiguousarray(tensor.array) for tensor in case.inputs})
    answer = hosted.http.post(_url(hosted, case), content=content, headers=headers)

    assert answer.status_code == 200, answer.text
    given = load(answer.content)
    assert [WireTensor.of(tensor.name, given[tensor.name]) for tensor in case.expected] == list(case.expected)
    assert len(given) == len(case.expected)


@pytest.mark.parametrize("case", REFUSALS, ids=str)
def test_case_is_refused_over_http(hosted: HostedTorchServe, case: Case) -> None:
    body, headers = json_message(case)
    answer = hosted.http.post(_url(hosted, case), content=body, headers=JSON | headers)

    assert case.refusal is not None
    assert answer.status_code == STATUS[case.refusal], answer.text
    # Of models and versions that there are not TorchServe says so itself, in its own form.
    assert case.mentions in (answer.json().get("error") or answer.json()["message"])
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("case", REFUSED_BY_HANDLER, ids=str)
def test_case_is_refused_over_grpc(hosted: HostedTorchServe, channel: grpc.Channel, case: Case) -> None:
    document = _predict(channel, case)

    assert set(document) == {"error"}
    assert case.mentions in document["error"]


@pytest.mark.parametrize("case", ELEMENTS_HERE, ids=str)
def test_elements_are_refused_over_http(hosted: HostedTorchServe, case: ElementsCase) -> None:
    url = f"http://{hosted.endpoints['inference']}/predictions/identity_{case.datatype.lower()}"
    answer = hosted.http.post(url, content=elements_message(case), headers=JSON)

    assert answer.status_code == 400, answer.text
    assert case.mentions in answer.json()["error"]


def test_all_workers_are_those_that_were_started(hosted: HostedTorchServe) -> None:
    # The last of the module: nothing above has ended one.
    log = (hosted.folder / "ran" / "logs" / "workers.log").read_text(encoding="utf-8")
    assert log.count("Torch worker started") == len(MODELS)


@pytest.fixture(scope="module")
def channel(hosted: HostedTorchServe) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(hosted.endpoints["grpc"], options=[("grpc.enable_http_proxy", 0)]) as opened:
        yield opened


def _predict(channel: grpc.Channel, case: Case) -> Mapping[str, Any]:
    body, _ = json_message(case)
    entries = {"data": body} | ({"tier": case.tier.encode()} if case.tier else {})
    call = channel.unary_unary("/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions")
    document: Mapping[str, Any] = json.loads(prediction_of(call(predictions_request(case.model, entries), timeout=60)))
    return document


def _check_envelope(document: Mapping[str, Any], case: Case) -> None:
    assert document["model_name"] == case.model
    assert document.get("id") == case.id
    assert document["parameters"]["tier"] == case.served_tier


def _url(hosted: HostedTorchServe, case: Case) -> str:
    version = f"/{case.version}" if case.version else ""
    return f"http://{hosted.endpoints['inference']}/predictions/{case.model}{version}"
