"""How urgent a request is, by Triton's parameters ``priority`` and ``timeout``. Pure."""

from dataclasses import dataclass

from serveprune.errors import InvalidArgument
from serveprune.oip.messages import InferenceRequest
from serveprune.oip.parameters import finite_number
from serveprune.scheduling.urgency import HIGHEST_PRIORITY, LOWEST_PRIORITY

PRIORITY_PARAMETER = "priority"
TIMEOUT_PARAMETER = "timeout"


@dataclass(frozen=True, slots=True)
class Urgency:
    """What a request says of its place in the queue.

    Attributes:
        priority: 1 (highest) to 3 (lowest); ``None`` leaves it to the deployment.
        timeout_seconds: From the request's arrival until its answer is worthless; ``None`` sets no bound.
    """

    priority: int | None = None
    timeout_seconds: float | None = None


ORDINARY = Urgency()
"""Of a request that says nothing of it."""


def urgency_of(request: InferenceRequest) -> Urgency:
    """Return a request's priority and timeout.

    As in Triton, a timeout is in microseconds, and 0 stands for the default in both. Clients that know no other
    type send both as text or as ``5.0``.

    Raises:
        InvalidArgument: One is no whole number, or out of range.
    """
    parameters = request.parameters
    if PRIORITY_PARAMETER not in parameters and TIMEOUT_PARAMETER not in parameters:
        return ORDINARY
    priority = _whole_number(parameters.get(PRIORITY_PARAMETER, 0), where=f"parameter {PRIORITY_PARAMETER}")
    if not 0 <= priority <= LOWEST_PRIORITY:
        raise InvalidArgument(
            f"parameter {PRIORITY_PARAMETER}: expected {HIGHEST_PRIORITY} (highest) to {LOWEST_PRIORITY} (lowest), or "
            f"0 for the default, got {priority}"
        )
    microseconds = _whole_number(parameters.get(TIMEOUT_PARAMETER, 0), where=f"parameter {TIMEOUT_PARAMETER}")
    if microseconds < 0:
        raise InvalidArgument(
            f"parameter {TIMEOUT_PARAMETER}: expected microseconds above 0, or 0 for none, got {microseconds}"
        )
    return Urgency(priority or None, microseconds / 1e6 or None)


def _whole_number(value: object, *, where: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = finite_number(value, where=where)
    if number != number // 1:
        raise InvalidArgument(f"{where}: expected a whole number, got {value!r}")
    return int(number)
