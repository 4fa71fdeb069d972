import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from serveprune.config.loading import load_config
from serveprune.config.profile import PassConfig, ProfileConfig
from serveprune.config.sparsity import SparsitySchedule, WeightPruneOptions
from serveprune.errors import ConfigError

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "sparsity.md"


def options(**given: Any) -> WeightPruneOptions:
    found = PassConfig.model_validate({"prune": {"structure": "weights", **given}}).prune
    assert isinstance(found, WeightPruneOptions)
    return found


def test_target_and_pattern_say_how_many_zeros() -> None:
    assert options(target={"sparsity": 0.9}).sparsity == 0.9
    two_of_four = options(pattern="2:4")
    assert (two_of_four.sparsity, two_of_four.kept_of_group) == (0.5, (2, 4))


@pytest.mark.parametrize(
    ("importance", "synthetic", "needed"),
    [("reconstruction", None, True), ("wanda", None, True), ("wanda", 64, False), ("magnitude", None, False)],
)
def test_calibration_is_needed_by_what_learns(importance: str, synthetic: int | None, needed: bool) -> None:
    given = options(target={"sparsity": 0.5}, importance=importance, synthetic_samples=synthetic)
    assert given.needs_calibration is needed


def test_loss_is_refused_when_importance_takes_no_gradients() -> None:
    assert options(target={"sparsity": 0.5}, importance="fisher", loss="labels").learns_by_gradients
    with pytest.raises(ValueError, match="expected importance: taylor or fisher with loss: labels, got importance"):
        options(target={"sparsity": 0.5}, importance="wanda", loss="labels")


@pytest.mark.parametrize(
    ("prune", "told"),
    [
        ({"structure": "weights"}, "got neither"),
        ({"structure": "weights", "pattern": "2:4", "target": {"sparsity": 0.5}}, "got both"),
        ({"structure": "weights", "pattern": "2:4", "scope": "global"}, "expected scope: layer with a pattern"),
        ({"structure": "weights", "pattern": "4:2"}, "expected N:M with N from 1 to M - 1, such as 2:4, got '4:2'"),
        ({"structure": "weights", "pattern": "4:4"}, "expected N:M with N from 1 to M - 1"),
        ({"structure": "weights", "target": {"sparsity": 1.0}}, "expected a number below 1, got 1"),
        ({"structure": "weights", "target": {"sparsity": 0}}, "expected a number above 0, got 0"),
        ({"structure": "weights", "target": {"speedup": 2}}, "zeros save bytes of the stored file and no time"),
        ({"structure": "weights", "target": {"sparsity": 0.5}, "round_to": 8}, "got round_to, which belongs to"),
        ({"structure": "weights", "target": {"sparsity": 0.5}, "repair": []}, "got repair, which belongs to"),
        (
            {"structure": "weights", "target": {"sparsity": 0.5}, "importance": "magnitude_l1"},
            "of single weights both norms are equal",
        ),
        ({"target": {"sparsity": 0.5}}, "expected structure: weights with target: sparsity, got structure: auto"),
        ({"structure": "heads", "target": {"ratio": 0.5}, "pattern": "2:4"}, "structure: weights with pattern, got"),
        ({"structure": "weights", "target": {"sparsity": 0.5}, "patern": "2:4"}, "did you mean `pattern`?"),
    ],
)
def test_options_that_make_no_sense_together_are_refused_in_words(
    tmp_path: Path, prune: dict[str, Any], told: str
) -> None:
    file = tmp_path / "serveprune.yaml"
    (tmp_path / "net.onnx").write_bytes(b"")
    document = {
        "profiles": {"sparse": {"passes": [{"prune": prune}]}},
        "models": {"net": {"source": {"onnx": "net.onnx"}}},
    }
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError) as refusal:
        load_config(file)
    (problem,) = refusal.value.problems
    assert "profiles.sparse.passes[0].prune" in problem
    assert told in problem


def test_options_come_back_from_their_own_dump() -> None:
    step = PassConfig(prune=options(target={"sparsity": 0.9}, schedule={"rounds": 4}))
    assert PassConfig.model_validate(step.model_dump(exclude_none=True)) == step


def test_wrong_rounds_are_refused() -> None:
    with pytest.raises(ValidationError):
        SparsitySchedule(rounds=0)


def test_guide_shows_valid_profiles_with_every_option() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    shown = yaml.safe_load(blocks[0])["profiles"]
    used: set[str] = set()
    for profile in shown.values():
        used |= set(profile["passes"][0]["prune"])
        ProfileConfig.model_validate(profile)
    assert used == set(WeightPruneOptions.model_fields)
    for option in ("importance", "scope"):
        for value in re.findall(r"'(\w+)'", str(WeightPruneOptions.model_fields[option].annotation)):
            assert value in blocks[0]
