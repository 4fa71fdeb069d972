import pytest

from serveprune.errors import InvalidArgument
from serveprune.oip.messages import InferenceRequest, Parameter
from serveprune.routing.urgency import ORDINARY, Urgency, urgency_of


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, ORDINARY),
        ({"tier": "int8"}, ORDINARY),
        ({"priority": 0, "timeout": 0}, ORDINARY),
        ({"priority": 1}, Urgency(priority=1)),
        ({"priority": 3.0}, Urgency(priority=3)),
        ({"priority": "2", "timeout": "1500"}, Urgency(2, 0.0015)),
        ({"timeout": 250_000}, Urgency(timeout_seconds=0.25)),
        ({"timeout": 2**63 - 1}, Urgency(timeout_seconds=(2**63 - 1) / 1e6)),
    ],
)
def test_urgency_is_read_from_tritons_parameters(parameters: dict[str, Parameter], expected: Urgency) -> None:
    assert urgency_of(InferenceRequest("m", (), parameters=parameters)) == expected


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"priority": 4}, r"priority: expected 1 \(highest\) to 3 \(lowest\), or 0 for the default, got 4"),
        ({"priority": -1}, "got -1"),
        ({"priority": 1.5}, "parameter priority: expected a whole number, got 1.5"),
        ({"priority": True}, "parameter priority: expected a finite number, got 'True'"),
        ({"priority": "high"}, "parameter priority: expected a finite number, got 'high'"),
        ({"timeout": -1}, "parameter timeout: expected microseconds above 0, or 0 for none, got -1"),
        ({"timeout": 0.5}, "parameter timeout: expected a whole number, got 0.5"),
        ({"timeout": float("nan")}, "parameter timeout: expected a finite number, got 'nan'"),
    ],
)
def test_urgency_is_refused_when_it_is_out_of_range(parameters: dict[str, Parameter], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        urgency_of(InferenceRequest("m", (), parameters=parameters))
