"""What a request demands of its answer instead of naming a tier. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from serveprune.errors import InvalidArgument
from serveprune.oip.messages import InferenceRequest, Parameter
from serveprune.oip.parameters import finite_number

MAX_LATENCY_PARAMETER = "max_latency_ms"
MIN_QUALITY_PARAMETER = "min_quality"
_MAX_LATENCY_HEADER = "x-max-latency-ms"
_MIN_QUALITY_HEADER = "x-min-quality"


@dataclass(frozen=True, slots=True)
class Objective:
    """The bounds a request sets; at least one.

    Attributes:
        max_latency_seconds: From the request's arrival to its answer.
        min_quality: Of the tier that serves, by `Variant.quality`.
    """

    max_latency_seconds: float | None = None
    min_quality: float | None = None


def objective_of(request: InferenceRequest) -> Objective | None:
    """Return what a request demands by parameter or header; ``None`` if that is nothing.

    Raises:
        InvalidArgument: A bound is no number or out of range, or two that mean the same disagree.
    """
    parameters = request.parameters
    asks = request.max_latency_ms is not None or request.min_quality is not None
    if not asks and MAX_LATENCY_PARAMETER not in parameters and MIN_QUALITY_PARAMETER not in parameters:
        return None
    latency_ms = _one_value(parameters, MAX_LATENCY_PARAMETER, request.max_latency_ms, header=_MAX_LATENCY_HEADER)
    if latency_ms is not None and latency_ms <= 0:
        raise InvalidArgument(f"{MAX_LATENCY_PARAMETER}: expected milliseconds above 0, got {latency_ms:g}")
    quality = _one_value(parameters, MIN_QUALITY_PARAMETER, request.min_quality, header=_MIN_QUALITY_HEADER)
    if quality is not None and not 0 < quality <= 1:
        raise InvalidArgument(
            f"{MIN_QUALITY_PARAMETER}: expected a quality above 0 and at most 1 (that of dense), got {quality:g}"
        )
    return Objective(None if latency_ms is None else latency_ms / 1e3, quality)


def _one_value(
    parameters: Mapping[str, Parameter], parameter: str, in_header: str | None, *, header: str
) -> float | None:
    values = {}
    if parameter in parameters:
        place = f"parameter {parameter}"
        values[place] = finite_number(parameters[parameter], where=place)
    if in_header is not None:
        place = f"header {header}"
        values[place] = finite_number(in_header, where=place)
    if len(set(values.values())) > 1:
        said = ", ".join(f"the {place} says {value:g}" for place, value in values.items())
        raise InvalidArgument(f"the request asks for more than one {parameter}: {said}; ask for one")
    return next(iter(values.values()), None)
