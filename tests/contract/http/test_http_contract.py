import gzip
import zlib

import pytest

from contract.cases import ANSWERED, CONTRADICTING, ELEMENTS, EXTENSIONS, FAILING, REFUSED, Case, ElementsCase
from contract.http.messages import STATUS, binary_message, elements_message, json_message, outputs, path
from contract.http.served import Served
from contract.numpy_plane import SECRET

WITH_JSON = [case for case in ANSWERED if case.has_json_form]


def check_answer(served: Served, case: Case, body: bytes, headers: dict[str, str], *, binary: bool) -> None:
    answer = served.client.post(path(case), content=body, headers=headers)

    assert answer.status_code == 200, answer.text
    tensors, document = outputs(answer)
    assert tensors == list(case.expected)
    assert document["model_name"] == case.model
    assert document["model_version"] == "1"
    assert document.get("id") == case.id
    assert document["parameters"]["tier"] == case.served_tier
    assert document["parameters"]["tier_reason"]
    assert answer.headers["x-compression-tier"] == case.served_tier
    assert ("inference-header-content-length" in answer.headers) is binary
    assert answer.headers["content-type"] == ("application/octet-stream" if binary else "application/json")


def check_refusal(served: Served, case: Case, body: bytes, headers: dict[str, str]) -> None:
    answer = served.client.post(path(case), content=body, headers=headers)

    assert case.refusal is not None
    assert answer.status_code == STATUS[case.refusal], answer.text
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert set(document) == {"error"}
    assert case.mentions in document["error"]
    assert SECRET not in answer.text
    assert "Traceback" not in answer.text
    expected = None if case.retry_after_seconds is None else str(case.retry_after_seconds)
    assert answer.headers.get("retry-after") == expected


@pytest.mark.parametrize("case", WITH_JSON, ids=str)
def test_case_is_answered_in_json(served: Served, case: Case) -> None:
    check_answer(served, case, *json_message(case), binary=False)


@pytest.mark.parametrize("case", ANSWERED, ids=str)
def test_case_is_answered_in_binary(served: Served, case: Case) -> None:
    check_answer(served, case, *binary_message(case), binary=True)


@pytest.mark.parametrize("case", WITH_JSON, ids=str)
def test_case_is_answered_when_its_json_is_deflated(served: Served, case: Case) -> None:
    body, headers = json_message(case)
    check_answer(served, case, zlib.compress(body), headers | {"Content-Encoding": "deflate"}, binary=False)


@pytest.mark.parametrize("case", ANSWERED, ids=str)
def test_case_is_answered_when_its_binary_form_is_zipped(served: Served, case: Case) -> None:
    body, headers = binary_message(case)
    check_answer(served, case, gzip.compress(body), headers | {"Content-Encoding": "gzip"}, binary=True)


@pytest.mark.parametrize("case", [*REFUSED, *EXTENSIONS, *FAILING], ids=str)
def test_case_is_refused_in_json(served: Served, case: Case) -> None:
    check_refusal(served, case, *json_message(case))


@pytest.mark.parametrize("case", [*REFUSED, *CONTRADICTING, *EXTENSIONS, *FAILING], ids=str)
def test_case_is_refused_in_binary(served: Served, case: Case) -> None:
    check_refusal(served, case, *binary_message(case))


@pytest.mark.parametrize("case", ELEMENTS, ids=str)
def test_elements_are_refused_in_json(served: Served, case: ElementsCase) -> None:
    served.rejected.clear()

    answer = served.client.post(f"/v2/models/identity_{case.datatype.lower()}/infer", content=elements_message(case))

    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error"}
    assert case.mentions in answer.json()["error"]
    assert served.rejected == ["INVALID_ARGUMENT"]
