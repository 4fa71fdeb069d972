from dataclasses import dataclass

from serveprune.scheduling.forecast import Forecast


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tier that is ready and good enough, and when it would answer.

    Attributes:
        rank: Its position among the model's tiers, which are listed from best to smallest.
        quality: See `Variant.quality`.
        forecast: For the request that is routed.
    """

    tier: str
    rank: int
    quality: float | None
    forecast: Forecast
