import re
from pathlib import Path

import pytest
import yaml

from serveprune.config.deployment import DeploymentConfig
from serveprune.config.guards import GuardsConfig

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guards.md"


def test_guide_shows_a_valid_deployment_with_every_guard_at_its_default() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert block is not None
    canary = DeploymentConfig.model_validate(yaml.safe_load(block[1])["deployments"]["minilm"]).canary
    assert canary is not None
    assert canary.guards is not None
    assert canary.guards.model_fields_set == set(GuardsConfig.model_fields)
    defaults = GuardsConfig(max_p99_ms=1.0)
    for name in ("min_samples", "window", "confidence"):
        assert getattr(canary.guards, name) == getattr(defaults, name)
    for name in canary.guards.bounds:
        assert f"| `{name}` |" in text


@pytest.mark.parametrize("name", list(GuardsConfig(max_p99_ms=1.0).model_dump()))
def test_bounds_are_all_that_judges(name: str) -> None:
    is_bound = name not in ("min_samples", "window", "confidence")
    guards = GuardsConfig.model_validate({"max_p99_ms": 1.0, name: 0.5 if is_bound or name == "confidence" else 5})
    assert (name in guards.bounds) == is_bound
