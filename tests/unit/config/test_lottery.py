import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from serveprune.config.lottery import LotteryOptions, RewindOptions
from serveprune.config.profile import ProfileConfig

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "lottery.md"


def test_guide_shows_a_valid_profile_and_every_way_of_rewinding_and_starting() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert block is not None
    shown = yaml.safe_load(block[1])["profiles"]["ticket"]
    assert ProfileConfig.model_validate(shown).passes[0].lottery is not None
    for name in RewindOptions.model_fields:
        assert f"`{name}: " in text
    for start in ("random", "given", "trained"):
        assert f"| `{start}` |" in text
    for name in LotteryOptions.model_fields:
        assert name in text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rate": 0.2, "sparsity": 0.8}, "expected rate or sparsity, got both"),
        ({"rewind": {}}, "expected exactly one of step, checkpoint, learning_rate, got none"),
        ({"rewind": {"step": 1, "learning_rate": 1}}, "got step, learning_rate"),
        ({"rewind": {"step": -1}}, "greater than or equal to 0"),
        ({"training": {"budget": {"seconds": 60}}}, "expected steps or epochs, so that every network learns equally"),
        ({"start": "given", "rewind": {"checkpoint": "a.safetensors"}}, "expected `trained` if the graph is what came"),
        ({"start": "trained", "rewind": {"step": 5}}, "expected 0 with start: trained"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(told)):
        LotteryOptions.model_validate(options)


def test_training_has_the_defaults_of_image_classifiers_where_it_is_named_only_in_part() -> None:
    training = LotteryOptions.model_validate({"training": {"learning_rate": 0.05}}).training
    assert (training.optimizer, training.learning_rate, training.batch_size) == ("sgd", 0.05, 64)


def test_the_bare_pass_removes_a_fifth_of_what_is_left_in_each_of_five_rounds() -> None:
    profile = ProfileConfig.model_validate({"passes": [{"lottery": None}]})
    options = profile.passes[0].lottery
    assert options is not None
    assert options.sparsities == pytest.approx((0.2, 0.36, 0.488, 0.5904, 0.67232))
    assert options.rewind.step == 0
