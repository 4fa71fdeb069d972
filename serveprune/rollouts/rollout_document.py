"""A rollout as a JSON document, so that it outlives the process."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serveprune.errors import DataLoss
from serveprune.rollouts.rollout import Phase, Rollout


class _RolloutRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    schema_version: Literal[1]
    identity: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    phase: Phase
    step: Annotated[int, Field(ge=0)]
    step_seconds: Annotated[float, Field(ge=0)]
    is_released: bool
    held_by: Annotated[str, Field(min_length=1)] | None
    reason: str
    figures: str
    who: Annotated[str, Field(min_length=1)] | None


def rollout_document(rollout: Rollout) -> bytes:
    """Return a rollout as JSON of schema 1, without what a restart makes void: readiness and the clock.

    It need not be stored at every tick: what is lost of `Rollout.step_seconds` makes a pause longer.
    """
    record = _RolloutRecord(
        schema_version=1,
        identity=rollout.identity,
        phase=rollout.phase,
        step=rollout.step,
        step_seconds=rollout.step_seconds,
        is_released=rollout.is_released,
        held_by=rollout.held_by,
        reason=rollout.reason,
        figures=rollout.figures,
        who=rollout.who,
    )
    return record.model_dump_json(indent=2).encode() + b"\n"


def read_rollout(document: bytes) -> Rollout:
    """Return the rollout that `rollout_document` wrote; pass it to `RolloutPolicy.start`.

    Raises:
        DataLoss: It is incomplete, altered, or of an unknown schema.
    """
    try:
        record = _RolloutRecord.model_validate_json(document)
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'document'}: {each['msg']}"
            for each in error.errors(include_url=False)
        )
        raise DataLoss(
            f"expected a rollout's document of schema 1, got another one ({found}); remove it to begin anew"
        ) from error
    return Rollout(
        identity=record.identity,
        phase=record.phase,
        step=record.step,
        step_seconds=record.step_seconds,
        is_released=record.is_released,
        held_by=record.held_by,
        reason=record.reason,
        figures=record.figures,
        who=record.who,
    )
