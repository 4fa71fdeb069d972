"""What the front ends decode into and encode from; nothing here knows HTTP or protobuf.

Nobody changes any of it. What is made for each request is not frozen: that makes it five times as dear.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from serveprune.oip.tensor import Tensor, TensorSpec

Parameter = bool | int | float | str


@dataclass(slots=True)
class InferenceRequest:
    """One inference as a client asked for it.

    Attributes:
        model: Model name as sent, possibly tier-qualified (``minilm@int8``).
        version: Model version, if the client named one.
        inputs: Tensors in the order sent.
        outputs: Names of the wanted outputs; empty for all.
        parameters: Request parameters as sent, ``tier`` and ``strict_tier`` among them.
        tier: Tier from the header or metadata ``x-compression-tier``.
        max_latency_ms: Text of the header or metadata ``x-max-latency-ms``.
        min_quality: Text of the header or metadata ``x-min-quality``.
        headers: Of HTTP, or the metadata of gRPC: names in lower case and values, as bytes or as text.
        deadline: Moment on ``time.monotonic()`` after which the caller no longer waits.
    """

    model: str
    inputs: tuple[Tensor, ...]
    version: str | None = None
    id: str | None = None
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    tier: str | None = None
    deadline: float | None = None
    max_latency_ms: str | None = None
    min_quality: str | None = None
    headers: Sequence[tuple[bytes | str, bytes | str]] = ()


@dataclass(slots=True)
class InferenceResponse:
    """The answer; ``parameters`` always hold ``tier`` and ``tier_reason``."""

    model: str
    version: str
    outputs: tuple[Tensor, ...]
    tier: str
    tier_reason: str
    id: str | None = None

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """Response parameters as they go on the wire."""
        return {"tier": self.tier, "tier_reason": self.tier_reason}


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """Who answers, and which protocol extensions it speaks."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a model or one of its tiers takes and gives."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    properties: Mapping[str, str] = field(default_factory=dict)


class ModelState(StrEnum):
    """State of a repository entry, in the words of Triton's repository extension."""

    READY = "READY"
    LOADING = "LOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class RepositoryEntry:
    """One line of the repository index."""

    name: str
    version: str
    state: ModelState
    reason: str = ""
