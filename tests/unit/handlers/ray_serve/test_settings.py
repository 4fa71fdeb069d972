from pathlib import Path
from typing import Any

import pytest

from serveprune.errors import ConfigError
from serveprune.handlers.ray_serve.settings import settings_of


def test_scaling_of_a_tier_adds_to_that_of_its_model_and_of_all() -> None:
    said: dict[str, Any] = {
        "config": "serveprune.yaml",
        "autoscaling": {"*": {"max_replicas": 9}, "m": {"min_replicas": 2}, "m@int8": {"max_replicas": 3}},
    }
    settings = settings_of(said)
    assert settings.config == Path("serveprune.yaml")
    assert settings.scaling("m", "int8") == {"min_replicas": 2, "max_replicas": 3, "target_ongoing_requests": 1}
    assert settings.scaling("m", "dense")["max_replicas"] == 9
    assert settings.scaling("other", "dense")["min_replicas"] == 1
    assert settings.has_own_scaling("m", "int8")
    assert not settings.has_own_scaling("m", "dense")


@pytest.mark.parametrize(
    ("said", "mentions"),
    [
        ({}, "args.config"),
        ({"config": "a", "typo": 1}, "args.typo"),
        ({"config": "a", "autoscaling": {"m": {"replicas": 3}}}, "args.autoscaling.m.replicas"),
        ({"config": "a", "autoscaling": {"m": {"max_replicas": 0}}}, "args.autoscaling.m"),
        ({"config": "a", "autoscaling": {"m": {"min_replicas": 9}}}, "args.autoscaling.m"),
        ({"config": "a", "ingress": {"autoscaling": {"max": 1}}}, "args.ingress.autoscaling.max"),
        ({"config": "a", "builds": {"resources": {"compress": 0}}}, "args.builds.resources.compress"),
    ],
)
def test_wrong_arguments_are_named(said: dict[str, Any], mentions: str) -> None:
    with pytest.raises(ConfigError, match=mentions.replace(".", r"\.")):
        settings_of(said)
