from typing import Any

import pytest

from serveprune.errors import InvalidArgument
from serveprune.oip.messages import InferenceRequest, Parameter
from serveprune.routing.tier_selection import TierChoice, choose_tier


@pytest.mark.parametrize(
    ("model", "header", "parameters", "expected"),
    [
        ("minilm", None, {}, TierChoice("minilm", None, False)),
        ("minilm@int8", None, {}, TierChoice("minilm", "int8", False)),
        ("minilm", "int8", {}, TierChoice("minilm", "int8", False)),
        ("minilm", None, {"tier": "int8"}, TierChoice("minilm", "int8", False)),
        ("minilm@int8", "int8", {"tier": "int8", "strict_tier": True}, TierChoice("minilm", "int8", True)),
        ("minilm", None, {"strict_tier": 1.0}, TierChoice("minilm", None, True)),
    ],
)
def test_choice_is_found_wherever_the_request_names_the_tier(
    model: str, header: str | None, parameters: dict[str, Parameter], expected: TierChoice
) -> None:
    assert choose_tier(InferenceRequest(model, (), tier=header, parameters=parameters)) == expected


@pytest.mark.parametrize(
    ("model", "header", "parameters", "message"),
    [
        ("minilm@int8", "dense", {}, "the model name says 'int8', the header x-compression-tier says 'dense'"),
        ("minilm", "dense", {"tier": "int8"}, "more than one tier"),
        ("minilm@int8", None, {"tier": "dense"}, "more than one tier"),
        ("minilm", None, {"tier": 3}, "parameter tier: expected the name of a tier, got 3"),
        ("minilm", None, {"strict_tier": "yes"}, "parameter strict_tier: expected true or false, got 'yes'"),
    ],
)
def test_choice_is_refused_when_the_request_contradicts_itself(
    model: str, header: str | None, parameters: dict[str, Parameter], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        choose_tier(InferenceRequest(model, (), tier=header, parameters=parameters))


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ({"model": "minilm@"}, "model name 'minilm@'"),
        ({"model": "minilm", "tier": ""}, "the header x-compression-tier"),
        ({"model": "minilm", "parameters": {"tier": ""}}, "the parameter tier"),
    ],
)
def test_empty_tier_is_refused_wherever_it_stands(asked: dict[str, Any], place: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{place}: expected the name of a tier, got an empty one"):
        choose_tier(InferenceRequest(inputs=(), **asked))
