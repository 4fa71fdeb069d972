from pydantic import Field

from serveprune.config.base import ConfigModel
from serveprune.config.model import DENSE
from serveprune.config.numbers import PositiveNumber, PositiveWholeNumber, WholeNumber


class DeploymentConfig(ConfigModel):
    """The policy by which traffic for one model is spread over its tiers."""

    default_tier: str = Field(default=DENSE, description="Serves requests that name no tier; one of the model's tiers.")
    share: PositiveNumber = Field(
        default=1.0,
        description="Weight of the model when several have requests waiting: one of share 2 is computed twice as long "
        "as one of share 1.",
    )
    priority: WholeNumber = Field(
        default=2,
        ge=1,
        le=3,
        description="Of requests that name none, from 1, the first, to 3. Low priority means waiting, not starving: a "
        "level is worth one second of waiting.",
    )
    max_queued_requests: PositiveWholeNumber | None = Field(
        default=None,
        description="Requests to this model that may wait or run. Default: as many as server.max_queued_requests.",
    )
