import re
from pathlib import Path
from typing import get_args

import yaml

from serveprune.config.profile import ProfileConfig
from serveprune.config.pruning import PruneOptions, TargetKind, WorkloadOptions

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "pruning.md"


def test_guide_shows_a_valid_profile_with_every_option_and_every_target() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert block is not None
    shown = yaml.safe_load(block[1])["profiles"]["lean"]
    options = ProfileConfig.model_validate(shown).passes[0].prune
    assert options is not None
    assert set(shown["passes"][0]["prune"]) == set(PruneOptions.model_fields)
    assert set(shown["passes"][0]["prune"]["workload"]) == set(WorkloadOptions.model_fields)
    for kind in get_args(TargetKind):
        assert f"`{kind}: " in text
    for option in ("structure", "importance", "repair"):
        annotation = PruneOptions.model_fields[option].annotation
        for value in re.findall(r"'(\w+)'", str(annotation)):
            assert value in block[1], f"{option}: {value}"
