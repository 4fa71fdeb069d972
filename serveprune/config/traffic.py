from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from serveprune.config.base import ConfigModel
from serveprune.config.numbers import PositiveShare


class ShadowConfig(ConfigModel):
    """A tier that computes some requests once more, after they were answered, to compare its answers with theirs.

    Its own answers go to nobody.
    """

    tier: str = Field(description="One of the model's tiers.")
    sample_ratio: PositiveShare = Field(
        default=0.01, description="Of the requests that it can be compared on, so many are computed once more."
    )


class StickyConfig(ConfigModel):
    """Requests with the same key get the same tier, as long as the weights stay.

    When the weight of a canary rises, keys move to the canary, and none back.
    """

    by: Literal["header", "parameter", "request_id"] = Field(
        description="What the key is: a header (gRPC: metadata), a parameter of the request, or its id. Requests "
        "without it are spread like all others."
    )
    name: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        validate_default=True,
        description="Of the header, in any case, or of the parameter.",
    )

    @field_validator("name")
    @classmethod
    def _name_of_what_has_one(cls, name: str | None, info: ValidationInfo) -> str | None:
        by = info.data.get("by")
        if by in ("header", "parameter") and name is None:
            raise ValueError(f"expected the name of the {by}, got none")
        if by == "request_id" and name is not None:
            raise ValueError(f"expected no name with by: request_id, got {name!r}")
        return name
