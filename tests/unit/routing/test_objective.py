import math

import pytest

from serveprune.errors import InvalidArgument
from serveprune.oip.messages import InferenceRequest, Parameter
from serveprune.routing.objective import Objective, objective_of


def request(
    parameters: dict[str, Parameter] | None = None, *, latency: str | None = None, quality: str | None = None
) -> InferenceRequest:
    return InferenceRequest("m", (), parameters=parameters or {}, max_latency_ms=latency, min_quality=quality)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (request(), None),
        (request({"tier": "int8", "priority": 1}), None),
        (request({"max_latency_ms": 50}), Objective(max_latency_seconds=0.05)),
        (request({"max_latency_ms": 12.5}), Objective(max_latency_seconds=0.0125)),
        (request({"max_latency_ms": "50"}), Objective(max_latency_seconds=0.05)),
        (request({"min_quality": 1}), Objective(min_quality=1.0)),
        (request({"max_latency_ms": 5e1, "min_quality": 0.95}), Objective(0.05, 0.95)),
        (request(latency="50", quality="0.95"), Objective(0.05, 0.95)),
        (request({"min_quality": 0.95}, latency=" 5e1 "), Objective(0.05, 0.95)),
        (
            request({"max_latency_ms": 5e1, "min_quality": "0.950"}, latency="50", quality="0.95"),
            Objective(0.05, 0.95),
        ),
    ],
)
def test_objective_is_read_wherever_the_request_states_it(asked: InferenceRequest, expected: Objective | None) -> None:
    assert objective_of(asked) == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (request({"max_latency_ms": 0}), "max_latency_ms: expected milliseconds above 0, got 0"),
        (request(latency="-3"), "max_latency_ms: expected milliseconds above 0, got -3"),
        (request({"max_latency_ms": True}), "parameter max_latency_ms: expected a finite number, got 'True'"),
        (request({"max_latency_ms": "soon"}), "parameter max_latency_ms: expected a finite number, got 'soon'"),
        (request({"max_latency_ms": math.nan}), "parameter max_latency_ms: expected a finite number, got 'nan'"),
        (request({"max_latency_ms": math.inf}), "parameter max_latency_ms: expected a finite number, got 'inf'"),
        (request(latency="50ms"), "header x-max-latency-ms: expected a finite number, got '50ms'"),
        (request(latency=""), "header x-max-latency-ms: expected a finite number, got ''"),
        (
            request({"min_quality": 0.0}),
            r"expected a quality above 0 and at most 1 \(that of dense\), got 0",
        ),
        (request({"min_quality": 95}), "min_quality: expected a quality above 0 and at most 1"),
        (request(quality="nan"), "header x-min-quality: expected a finite number, got 'nan'"),
        (
            request({"max_latency_ms": 50}, latency="60"),
            "more than one max_latency_ms: the parameter max_latency_ms says 50, the header x-max-latency-ms says 60",
        ),
        (request({"min_quality": 0.9}, quality="0.95"), "asks for more than one min_quality"),
    ],
)
def test_objective_is_refused_when_it_is_no_sensible_bound(asked: InferenceRequest, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        objective_of(asked)
