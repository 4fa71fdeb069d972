"""The contract table on Ray Serve: what our own server answers and refuses, it does."""

import grpc
import pytest
from contract.cases import ELEMENTS, Case, ElementsCase
from contract.grpc.messages import elements_message, metadata, outputs, raw_message
from contract.http import messages as http_messages
from contract.http.messages import STATUS, binary_message, json_message, path

from e2e.ray_serve.hosted import HostedOnRay
from e2e.test_contract_cases import ANSWERED_HERE, REFUSALS
from serveprune.oip.datatype import Datatype


@pytest.mark.parametrize("case", [case for case in ANSWERED_HERE if case.has_json_form], ids=str)
def test_case_is_answered_over_http_in_json(hosted: HostedOnRay, case: Case) -> None:
    _check_http(hosted, case, *json_message(case))


@pytest.mark.parametrize("case", ANSWERED_HERE, ids=str)
def test_case_is_answered_over_http_in_binary(hosted: HostedOnRay, case: Case) -> None:
    _check_http(hosted, case, *binary_message(case))


@pytest.mark.parametrize("case", ANSWERED_HERE, ids=str)
def test_case_is_answered_over_grpc(hosted: HostedOnRay, case: Case) -> None:
    answer, call = hosted.stub.ModelInfer.with_call(raw_message(case), metadata=metadata(case))

    assert outputs(answer) == case.expected
    assert (answer.model_name, answer.id) == (case.model, case.id or "")
    assert dict(call.trailing_metadata())["x-compression-tier"] == case.served_tier


@pytest.mark.parametrize("case", REFUSALS, ids=str)
def test_case_is_refused_over_http(hosted: HostedOnRay, case: Case) -> None:
    body, headers = binary_message(case)
    answer = hosted.http.post(path(case), content=body, headers=headers)

    assert case.refusal is not None
    assert answer.status_code == STATUS[case.refusal], answer.text
    assert set(answer.json()) == {"error"}
    assert case.mentions in answer.json()["error"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("case", REFUSALS, ids=str)
def test_case_is_refused_over_grpc(hosted: HostedOnRay, case: Case) -> None:
    refusal = hosted.grpc_refusal(raw_message(case), metadata=metadata(case))

    assert case.refusal is not None
    assert refusal.code is grpc.StatusCode[case.refusal]
    assert case.mentions in refusal.details
    assert "Traceback" not in refusal.details


@pytest.mark.parametrize("case", [case for case in ELEMENTS if case.datatype != Datatype.BF16], ids=str)
def test_elements_are_refused_over_http_in_json(hosted: HostedOnRay, case: ElementsCase) -> None:
    url = f"/v2/models/identity_{case.datatype.lower()}/infer"
    answer = hosted.http.post(url, content=http_messages.elements_message(case))

    assert answer.status_code == 400, answer.text
    assert case.mentions in answer.json()["error"]


@pytest.mark.parametrize("case", [case for case in ELEMENTS if case.contents], ids=str)
def test_elements_are_refused_over_grpc(hosted: HostedOnRay, case: ElementsCase) -> None:
    refusal = hosted.grpc_refusal(elements_message(case))

    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert case.mentions in refusal.details


def _check_http(hosted: HostedOnRay, case: Case, body: bytes, headers: dict[str, str]) -> None:
    answer = hosted.http.post(path(case), content=body, headers=headers)

    assert answer.status_code == 200, answer.text
    tensors, document = http_messages.outputs(answer)
    assert tensors == list(case.expected)
    assert document["model_name"] == case.model
    assert document.get("id") == case.id
    assert document["parameters"]["tier"] == case.served_tier
