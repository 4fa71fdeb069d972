from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from serveprune.config.base import ConfigModel
from serveprune.config.duration import DURATION_SCHEMA, parse_duration
from serveprune.config.guards import GuardsConfig
from serveprune.config.numbers import Percent
from serveprune.config.problem import description

FULL_PERCENT = 100


class Pause(NamedTuple):
    """How long the weight stays as it is.

    Attributes:
        duration_seconds: ``None``: until an operator goes on.
    """

    duration_seconds: float | None


def _parse_pause(value: Any) -> Pause:
    if isinstance(value, Pause):
        return value
    if isinstance(value, Mapping):
        if set(value) - {"duration"}:
            raise ValueError(
                "expected a duration such as 10m, {duration: 10m}, or {} to wait for an operator, got "
                f"{description(value)}"
            )
        given = value.get("duration")
        return Pause(None if given is None else parse_duration(given))
    return Pause(parse_duration(value))


def _written_pause(pause: Pause) -> dict[str, float]:
    return {} if pause.duration_seconds is None else {"duration": pause.duration_seconds}


PauseStep = Annotated[
    Pause,
    BeforeValidator(_parse_pause),
    PlainSerializer(_written_pause),
    WithJsonSchema(
        {
            "anyOf": [
                *DURATION_SCHEMA["anyOf"],
                {
                    "type": "object",
                    "properties": {"duration": {**DURATION_SCHEMA, "description": "How long."}},
                    "additionalProperties": False,
                },
            ],
            "format": "pause",
            "examples": ["10m", {}],
        }
    ),
]


class StepConfig(ConfigModel):
    """One step of a canary: a mapping with exactly one key, in the words of Argo Rollouts."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    setWeight: Percent | None = Field(  # noqa: N815  (Argo Rollouts' word)
        default=None, description="Percent of the requests that the canary serves from here on."
    )
    pause: PauseStep | None = Field(
        default=None,
        description="Stay so long, and until the guards have seen enough and found nothing wrong; `{}` waits for an "
        "operator to resume. Time in which the canary is not ready does not count.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of setWeight, pause per step, got {', '.join(given) or 'none'}")
        return self


class CanaryConfig(ConfigModel):
    """A tier that gets more and more of the requests that name no tier, as long as its guards find nothing wrong.

    After the last step it is promoted to 100 percent, so `setWeight: 100` at the end may be left out.
    """

    tier: str = Field(description="One of the model's tiers, another one than the stable one.")
    steps: tuple[StepConfig, ...] = Field(
        min_length=1,
        description="In this order; weights do not fall, and nothing follows `setWeight: 100`.",
    )
    guards: GuardsConfig | None = Field(
        default=None, description="Bounds on what the canary does. Default: none, time alone decides."
    )

    @field_validator("steps")
    @classmethod
    def _weights_rise_to_the_last(cls, steps: tuple[StepConfig, ...]) -> tuple[StepConfig, ...]:
        before = 0
        for number, step in enumerate(steps, start=1):
            if before == FULL_PERCENT:
                raise ValueError(
                    f"expected no step after setWeight: 100, which promotes the canary for good, got {len(steps)} "
                    f"steps, of which it is number {number - 1}"
                )
            if step.setWeight is not None:
                if step.setWeight < before:
                    raise ValueError(
                        f"expected weights that do not fall, got setWeight: {step.setWeight} after {before} as step "
                        f"{number}"
                    )
                before = step.setWeight
        return steps

    @field_validator("guards")
    @classmethod
    def _guards_have_something_to_judge(cls, guards: GuardsConfig | None, info: ValidationInfo) -> GuardsConfig | None:
        steps: tuple[StepConfig, ...] | None = info.data.get("steps")
        weights = (step.setWeight or 0 for step in steps or ())
        if guards is not None and steps is not None and not any(0 < weight < FULL_PERCENT for weight in weights):
            raise ValueError(
                "expected a step with a setWeight from 1 to 99, at which the guards see requests, got none; the canary "
                "would never be promoted"
            )
        return guards
