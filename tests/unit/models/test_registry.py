from typing import Any

import pytest

from serveprune.config.model import ModelConfig
from serveprune.errors import NotFound
from serveprune.models.registry import Model, Registry
from serveprune.models.variant import VariantState

INSTANCE: Any = object()
"""Nobody runs it here."""


def model(version: str, *, name: str = "m") -> Model:
    config = ModelConfig.model_validate({"source": {"onnx": "m.onnx"}, "version": version, "tiers": ["int8"]})
    return Model(name, config, default_tier="dense")


def make_ready(model: Model, tier: str, registry: Registry) -> None:
    model.update(tier, state=VariantState.READY, instance=INSTANCE)
    registry.refresh()


def test_version_that_is_named_is_the_one_that_is_given_whatever_is_ready() -> None:
    nine, ten = model("9"), model("10")
    registry = Registry([ten, nine])
    make_ready(nine, "dense", registry)
    assert registry.get("m") is nine
    assert registry.get("m", version="9") is nine
    assert registry.get("m", version="10") is ten
    assert registry.find("m", "10") is ten
    assert registry.find("m", "11") is None
    assert registry.versions("m") == registry.models() == [nine, ten]
    with pytest.raises(NotFound, match="model m has no version '11'; it has: 9, 10"):
        registry.get("m", version="11")
    with pytest.raises(NotFound, match="no model named 'n' is registered; registered: m"):
        registry.get("n")


def test_highest_version_is_meant_while_none_is_ready() -> None:
    assert Registry([model("10"), model("9")]).get("m").version == "10"


def test_higher_version_takes_over_once_all_its_tiers_have_settled() -> None:
    one, two = model("1"), model("2")
    registry = Registry([one, two])
    make_ready(one, "dense", registry)
    assert registry.get("m") is one
    make_ready(two, "dense", registry)
    assert registry.get("m") is one
    two.update("int8", state=VariantState.FAILED)
    registry.refresh()
    assert registry.get("m") is two
    make_ready(one, "int8", registry)
    assert registry.get("m") is two


def test_version_that_fails_never_takes_over() -> None:
    one, two = model("1"), model("2")
    registry = Registry([one, two])
    make_ready(one, "dense", registry)
    for tier in ("dense", "int8"):
        two.update(tier, state=VariantState.FAILED)
    registry.refresh()
    assert registry.get("m") is one


def test_next_lower_version_is_given_when_the_highest_goes() -> None:
    versions = [model(version) for version in ("1", "2", "3")]
    registry = Registry(versions)
    for each in versions:
        for tier in ("dense", "int8"):
            make_ready(each, tier, registry)
    assert registry.get("m").version == "3"
    registry.replace(versions[:2])
    assert registry.get("m").version == "2"
    assert [each.version for each in registry.current()] == ["2"]
    registry.replace([])
    assert registry.models() == registry.current() == registry.versions("m") == []


def test_version_whose_model_is_replaced_goes_on_until_a_higher_one_is_complete() -> None:
    first, second, successor = model("1"), model("2"), model("1")
    registry = Registry([first, second])
    for tier in first.variants:
        make_ready(first, tier, registry)
    assert registry.get("m") is first
    make_ready(second, "dense", registry)
    for tier in successor.variants:
        successor.update(tier, state=VariantState.READY, instance=first.variants[tier].instance)
    registry.replace([successor, second])
    assert registry.get("m") is successor
    for tier in second.variants:
        make_ready(second, tier, registry)
    assert registry.get("m") is second
