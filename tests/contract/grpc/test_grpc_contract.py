from typing import Any

import grpc
import pytest

from contract.cases import ANSWERED, CONTRADICTING, ELEMENTS, EXTENSIONS, FAILING, REFUSED, Case, ElementsCase
from contract.grpc.conftest import RunningFrontend
from contract.grpc.messages import elements_message, has_typed_form, metadata, outputs, raw_message, typed_message
from contract.numpy_plane import SECRET
from serveprune.frontends.grpc.pb import open_inference_pb2 as pb

TYPED = [case for case in ANSWERED if has_typed_form(case)]
TYPED_REFUSED = [case for case in REFUSED if has_typed_form(case)]


@pytest.mark.parametrize("case", ANSWERED, ids=str)
def test_case_is_answered_when_its_contents_are_raw(front: RunningFrontend, case: Case) -> None:
    _check_answer(front, case, raw_message(case))


@pytest.mark.parametrize("case", TYPED, ids=str)
def test_case_is_answered_when_its_contents_are_typed(front: RunningFrontend, case: Case) -> None:
    _check_answer(front, case, typed_message(case))


@pytest.mark.parametrize("case", [*REFUSED, *CONTRADICTING, *EXTENSIONS, *FAILING], ids=str)
def test_case_is_refused_when_its_contents_are_raw(front: RunningFrontend, case: Case) -> None:
    _check_refusal(front, case, raw_message(case))


@pytest.mark.parametrize("case", TYPED_REFUSED, ids=str)
def test_case_is_refused_when_its_contents_are_typed(front: RunningFrontend, case: Case) -> None:
    _check_refusal(front, case, typed_message(case))


@pytest.mark.parametrize("case", [case for case in ELEMENTS if case.contents], ids=str)
def test_elements_are_refused_when_contents_are_typed(front: RunningFrontend, case: ElementsCase) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        front.stub.ModelInfer(elements_message(case))

    error: Any = refusal.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert case.mentions in error.details()
    assert front.rejected == ["INVALID_ARGUMENT"]


@pytest.mark.parametrize("case", [*CONTRADICTING, *EXTENSIONS], ids=str)
def test_rejection_is_counted_when_the_data_plane_never_saw_the_request(front: RunningFrontend, case: Case) -> None:
    with pytest.raises(grpc.RpcError):
        front.stub.ModelInfer(raw_message(case))

    assert front.plane.requests == []
    assert front.rejected == [case.refusal]


def test_rejection_is_left_to_the_data_plane_when_it_saw_the_request(front: RunningFrontend) -> None:
    for case in REFUSED:
        with pytest.raises(grpc.RpcError):
            front.stub.ModelInfer(raw_message(case), metadata=metadata(case))

    assert front.rejected == []


def _check_answer(front: RunningFrontend, case: Case, message: pb.ModelInferRequest) -> None:
    answer, call = front.stub.ModelInfer.with_call(message, metadata=metadata(case))

    assert outputs(answer) == case.expected
    assert answer.model_name == case.model
    assert answer.model_version == "1"
    assert answer.id == (case.id or "")
    assert answer.parameters["tier"].string_param == case.served_tier
    assert answer.parameters["tier_reason"].string_param
    assert dict(call.trailing_metadata())["x-compression-tier"] == case.served_tier
    (request,) = front.plane.requests
    assert request.parameters == case.parameters


def _check_refusal(front: RunningFrontend, case: Case, message: pb.ModelInferRequest) -> None:
    assert case.refusal is not None
    with pytest.raises(grpc.RpcError) as refusal:
        front.stub.ModelInfer(message, metadata=metadata(case))

    error: Any = refusal.value
    assert error.code() is grpc.StatusCode[case.refusal]
    assert case.mentions in error.details()
    assert SECRET not in error.details()
    expected = str(case.retry_after_seconds) if case.retry_after_seconds else None
    assert dict(error.trailing_metadata()).get("retry-after") == expected
