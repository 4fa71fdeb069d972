from typing import Any

import pytest

from serveprune.config.differences import Difference, DifferenceKind, differences
from serveprune.config.model import ModelConfig
from serveprune.config.profile import ProfileConfig

PRUNE: dict[str, Any] = {"prune": {"target": {"speedup": 1.5}}}
WEIGHTS: dict[str, Any] = {"prune": {"structure": "weights", "target": {"sparsity": 0.9}}}
QUANTIZE: dict[str, Any] = {"quantize": {}}
DISTILL: dict[str, Any] = {"distill": {}}


def profile(*passes: dict[str, Any], **gate: float) -> ProfileConfig:
    return ProfileConfig.model_validate({"passes": passes, "gate": gate})


def torch_model(*inputs: str) -> ModelConfig:
    described = [{"name": name, "shape": ["batch", 4]} for name in inputs]
    return ModelConfig.model_validate({"source": {"torch": "a:b", "inputs": described}})


def found(old: Any, new: Any) -> list[tuple[str, str, Any, Any]]:
    return [
        (str(each.kind), ".".join(map(str, each.path)), _shown(each.old), _shown(each.new))
        for each in differences(old, new)
    ]


def _shown(value: Any) -> Any:
    return value.model_dump(exclude_unset=True) if hasattr(value, "model_dump") else value


CASES = {
    "nothing": (profile(PRUNE), profile(PRUNE), []),
    "a default written out": (profile(QUANTIZE), profile({"quantize": {"dtype": "int8", "scheme": "auto"}}), []),
    "a pass without options": (profile({"quantize": None}), profile(QUANTIZE), []),
    "an option of a pass": (
        profile(PRUNE, QUANTIZE),
        profile(PRUNE, {"quantize": {"scheme": "static"}}),
        [("changed", "passes.1.quantize.scheme", "auto", "static")],
    ),
    "an optional value that comes": (
        profile(PRUNE),
        profile(PRUNE, min_quality=0.9),
        [("changed", "gate.min_quality", None, 0.9)],
    ),
    "the value of the only key": (
        profile(PRUNE),
        profile({"prune": {"target": {"speedup": 2}}}),
        [("changed", "passes.0.prune.target.speedup", 1.5, 2.0)],
    ),
    "the only key": (
        profile(PRUNE),
        profile({"prune": {"target": {"ratio": 0.5}}}),
        [("changed", "passes.0.prune.target", {"speedup": 1.5}, {"ratio": 0.5})],
    ),
    "the kind of a mapping": (
        profile(PRUNE),
        profile(WEIGHTS),
        [("changed", "passes.0.prune", PRUNE["prune"], WEIGHTS["prune"])],
    ),
    "a pass in the middle": (
        profile(PRUNE, QUANTIZE),
        profile(PRUNE, DISTILL, {"quantize": {"scheme": "static"}}),
        [("added", "passes.1", None, DISTILL), ("changed", "passes.2.quantize.scheme", "auto", "static")],
    ),
    "a pass that goes": (
        profile(PRUNE, DISTILL, QUANTIZE),
        profile(PRUNE, QUANTIZE),
        [("removed", "passes.1", DISTILL, None)],
    ),
    "a pass instead of another": (
        profile(PRUNE),
        profile(DISTILL),
        [("removed", "passes.0", PRUNE, None), ("added", "passes.0", None, DISTILL)],
    ),
    "one of two equal passes": (
        profile(QUANTIZE, QUANTIZE),
        profile(QUANTIZE),
        [("removed", "passes.1", QUANTIZE, None)],
    ),
    "passes in another order": (
        profile(PRUNE, QUANTIZE),
        profile(QUANTIZE, PRUNE),
        [("added", "passes.0", None, QUANTIZE), ("removed", "passes.1", QUANTIZE, None)],
    ),
    "inputs in another order": (
        torch_model("a", "b"),
        torch_model("b", "a"),
        [
            ("added", "source.inputs.0", None, {"name": "b", "shape": ("batch", 4)}),
            ("removed", "source.inputs.1", {"name": "b", "shape": ("batch", 4)}, None),
        ],
    ),
}


@pytest.mark.parametrize(("old", "new", "expected"), CASES.values(), ids=CASES.keys())
def test_differences_are_found_as_deep_as_shapes_agree(
    old: Any, new: Any, expected: list[tuple[str, str, Any, Any]]
) -> None:
    assert found(old, new) == expected


def test_differences_lie_below_the_path_when_one_is_given() -> None:
    (found,) = differences(profile(PRUNE), profile(PRUNE, min_quality=0.9), path=("profiles", "lean"))
    assert found == Difference(("profiles", "lean", "gate", "min_quality"), DifferenceKind.CHANGED, None, 0.9)
