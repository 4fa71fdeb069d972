from pydantic import BaseModel, ConfigDict


class ConfigModel(BaseModel):
    """Base of every configuration object: immutable, and strict about keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
