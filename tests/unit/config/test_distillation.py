import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from serveprune.config.distillation import DistillOptions
from serveprune.config.learning import LearningBudget
from serveprune.config.profile import PassConfig, ProfileConfig

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "distillation.md"


def options(**given: Any) -> DistillOptions:
    found = PassConfig.model_validate({"distill": given}).distill
    assert found is not None
    return found


def test_bare_pass_has_the_defaults() -> None:
    found = PassConfig.model_validate({"distill": None}).distill
    assert found == options()
    assert found is not None
    assert (found.intermediate, found.batch_norm, found.losses.labels) == ("auto", "frozen", 0)


@pytest.mark.parametrize("budget", [{}, {"steps": 5, "seconds": 1}, {"steps": 0}, {"seconds": 0}, {"epochs": True}])
def test_budget_is_refused_unless_it_is_one_positive_number(budget: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        options(budget=budget)


def test_intermediate_is_a_word_or_a_list_of_names() -> None:
    assert options(intermediate="none").intermediate == "none"
    assert options(intermediate=["relu_1", "relu_2"]).intermediate == ("relu_1", "relu_2")
    with pytest.raises(ValidationError):
        options(intermediate="relu_1")


@pytest.mark.parametrize(
    "wrong",
    [
        {"losses": {"cosine": -1}},
        {"temperature": 0},
        {"held_out": 1},
        {"learning_rate": 0},
        {"warmup_ratio": 1},
        {"schedule": "steps"},
        {"batch_norm": "eval"},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        options(**wrong)


def test_profiles_of_the_guide_load() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    (profile,) = yaml.safe_load(text)["profiles"].values()
    passes = ProfileConfig.model_validate(profile).passes
    assert [step.name for step in passes] == ["prune", "distill", "quantize"]
    assert passes[1].distill is not None
    assert passes[1].distill.budget == LearningBudget(seconds=600)
