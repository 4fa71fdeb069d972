"""The contract table against a real server that runs ONNX files; hosts run the same tests against theirs."""

import grpc
import numpy as np
import pytest
from contract.cases import ANSWERED, CONTRADICTING, ELEMENTS, EXTENSIONS, REFUSED, Case, ElementsCase, WireTensor
from contract.grpc.messages import elements_message, metadata, outputs, raw_message
from contract.http import messages as http_messages
from contract.http.messages import STATUS, binary_message, json_message, path

from e2e.served import Served
from serveprune.errors import Code
from serveprune.oip.datatype import Datatype


def _is_served_here(case: Case) -> bool:
    # ONNX Runtime takes no bfloat16 from numpy and only UTF-8 strings; `add` has no weights to compress.
    bfloat16 = any(tensor.datatype == Datatype.BF16 for tensor in case.inputs)
    return not bfloat16 and "no text" not in case.name and case.served_tier == "dense"


_ONE = WireTensor.of("x", np.ones((1, 1), dtype=np.float32))
REFUSED_HERE = (
    # The double takes any bytes, and has no clock.
    Case(
        "BYTES that are no text",
        "identity_bytes",
        (WireTensor("x", "BYTES", (1, 1), b"\x03\0\0\0\xff\x00\xfe"),),
        refusal=Code.INVALID_ARGUMENT,
        mentions="UTF-8",
    ),
    Case(
        "time is over before it is computed",
        "identity_fp32",
        (_ONE,),
        parameters={"timeout": 1},
        refusal=Code.DEADLINE_EXCEEDED,
        mentions="deadline",
    ),
    *(
        Case(
            f"{name} is {value!r}",
            "identity_fp32",
            (_ONE,),
            parameters={name: value},
            refusal=Code.INVALID_ARGUMENT,
            mentions=name,
        )
        for name, value in (
            ("timeout", "soon"),
            ("timeout", -1),
            ("priority", "high"),
            ("max_latency_ms", "soon"),
            ("max_latency_ms", 0),
            ("min_quality", "good"),
            ("min_quality", 1.5),
        )
    ),
)
REFUSALS = [*REFUSED, *CONTRADICTING, *EXTENSIONS, *REFUSED_HERE]
ANSWERED_HERE = [case for case in ANSWERED if _is_served_here(case)]


@pytest.mark.parametrize("case", [case for case in ANSWERED_HERE if case.has_json_form], ids=str)
def test_case_is_answered_over_http_in_json(server: Served, case: Case) -> None:
    _check_http(server, case, *json_message(case))


@pytest.mark.parametrize("case", ANSWERED_HERE, ids=str)
def test_case_is_answered_over_http_in_binary(server: Served, case: Case) -> None:
    _check_http(server, case, *binary_message(case))


@pytest.mark.parametrize("case", ANSWERED_HERE, ids=str)
def test_case_is_answered_over_grpc(server: Served, case: Case) -> None:
    answer, call = server.stub.ModelInfer.with_call(raw_message(case), metadata=metadata(case))

    assert outputs(answer) == case.expected
    assert (answer.model_name, answer.id) == (case.model, case.id or "")
    assert dict(call.trailing_metadata())["x-compression-tier"] == case.served_tier


@pytest.mark.parametrize("case", REFUSALS, ids=str)
def test_case_is_refused_over_http(server: Served, case: Case) -> None:
    body, headers = binary_message(case)
    answer = server.http.post(path(case), content=body, headers=headers)

    assert case.refusal is not None
    assert answer.status_code == STATUS[case.refusal], answer.text
    assert set(answer.json()) == {"error"}
    assert case.mentions in answer.json()["error"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("case", REFUSALS, ids=str)
def test_case_is_refused_over_grpc(server: Served, case: Case) -> None:
    assert case.refusal is not None
    refusal = server.grpc_refusal(raw_message(case), metadata=metadata(case))

    assert refusal.code is grpc.StatusCode[case.refusal]
    assert case.mentions in refusal.details
    assert "Traceback" not in refusal.details


@pytest.mark.parametrize("case", [case for case in ELEMENTS if case.datatype != Datatype.BF16], ids=str)
def test_elements_are_refused_over_http_in_json(server: Served, case: ElementsCase) -> None:
    path = f"/v2/models/identity_{case.datatype.lower()}/infer"
    answer = server.http.post(path, content=http_messages.elements_message(case))

    assert answer.status_code == 400, answer.text
    assert case.mentions in answer.json()["error"]


@pytest.mark.parametrize("case", [case for case in ELEMENTS if case.contents], ids=str)
def test_elements_are_refused_over_grpc(server: Served, case: ElementsCase) -> None:
    refusal = server.grpc_refusal(elements_message(case))

    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert case.mentions in refusal.details


def _check_http(server: Served, case: Case, body: bytes, headers: dict[str, str]) -> None:
    answer = server.http.post(path(case), content=body, headers=headers)

    assert answer.status_code == 200, answer.text
    tensors, document = http_messages.outputs(answer)
    assert tensors == list(case.expected)
    assert document["model_name"] == case.model
    assert document.get("id") == case.id
    assert document["parameters"]["tier"] == case.served_tier
