from pathlib import Path

from unit.artifacts.artifact_factory import MEASUREMENTS, commit_dense, commit_tier

from serveprune.artifacts.store import ArtifactStore
from serveprune.models.variant import Variant


def test_quality_is_the_headline_metric_of_what_was_measured(tmp_path: Path) -> None:
    variant = Variant("int8", artifact=commit_tier(ArtifactStore(tmp_path, max_bytes=2**30)))
    assert variant.quality == MEASUREMENTS.quality["cosine"] == 0.9931


def test_quality_of_dense_is_one_whatever_is_known_of_it(tmp_path: Path) -> None:
    assert Variant("dense").quality == 1.0
    assert Variant("dense", artifact=commit_dense(ArtifactStore(tmp_path, max_bytes=2**30))).quality == 1.0


def test_quality_is_not_known_when_there_is_no_artifact() -> None:
    assert Variant("int8").quality is None
