import json
from pathlib import Path

import pytest

from serveprune.cli.compress_target import SourceFlags, resolve_target
from serveprune.config.model import HuggingFaceSource, OnnxSource
from serveprune.errors import ConfigError, InvalidArgument, NotFound

FLAGS = SourceFlags(task=None, pooling="none", normalize=False)


def hugging_face_folder(folder: Path, architecture: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    return folder


def test_target_is_made_on_the_spot_when_the_model_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").touch()
    target = resolve_target("net.onnx", profile="int8", config=None, store=None, flags=FLAGS)
    assert (target.name, target.tier) == ("net", "int8")
    assert target.model.source == OnnxSource(onnx=tmp_path / "net.onnx")
    assert target.store.path == tmp_path / ".serveprune"
    assert [step.name for step in target.profile.passes] == ["quantize"]


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertModel", "feature-extraction"),
        ("BertForSequenceClassification", "sequence-classification"),
        ("ViTForImageClassification", "image-classification"),
    ],
)
def test_task_comes_from_the_folder_unless_it_is_given(tmp_path: Path, architecture: str, task: str) -> None:
    folder = hugging_face_folder(tmp_path / "model", architecture)
    source = resolve_target(str(folder), profile="int8", config=None, store=None, flags=FLAGS).model.source
    assert isinstance(source, HuggingFaceSource)
    assert source.task == task
    given = SourceFlags(task="feature-extraction", pooling="mean", normalize=True)
    source = resolve_target(str(folder), profile="int8", config=None, store=None, flags=given).model.source
    assert isinstance(source, HuggingFaceSource)
    assert (source.task, source.pooling, source.normalize) == ("feature-extraction", "mean", True)


def write_config(folder: Path) -> Path:
    (folder / "net.onnx").touch()
    config = folder / "serveprune.yaml"
    config.write_text(
        """
store: {path: ./artifacts}
builds: {threads: 2}
profiles:
  careful: {passes: [{quantize: {scheme: dynamic}}], gate: {min_quality: 0.99}}
models:
  net: {source: {onnx: net.onnx}, tiers: [dense, careful]}
"""
    )
    return config


def test_target_comes_from_the_config_when_the_model_is_a_name(tmp_path: Path) -> None:
    target = resolve_target("net", profile="careful", config=write_config(tmp_path), store=None, flags=FLAGS)
    assert target.store.path == tmp_path / "artifacts"
    assert (target.builds.threads, target.profile.gate.min_quality) == (2, 0.99)


def test_config_of_this_folder_is_used_when_the_model_is_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    target = resolve_target("net", profile="careful", config=None, store=Path("elsewhere"), flags=FLAGS)
    assert target.store.path == tmp_path / "elsewhere"


def test_profile_may_be_a_file(tmp_path: Path) -> None:
    profile = tmp_path / "gentle.yaml"
    profile.write_text("passes: [{quantize: {ignore: ['head*']}}]\n")
    target = resolve_target("net", profile=str(profile), config=write_config(tmp_path), store=None, flags=FLAGS)
    assert target.tier == "gentle"
    assert target.profile.passes[0].options.model_dump()["ignore"] == ("head*",)


def test_resolving_reports_the_line_when_a_profile_file_is_wrong(tmp_path: Path) -> None:
    profile = tmp_path / "wrong.yaml"
    profile.write_text("passes:\n  - quantise: {}\n")
    with pytest.raises(ConfigError, match=r"wrong\.yaml:2"):
        resolve_target("net", profile=str(profile), config=write_config(tmp_path), store=None, flags=FLAGS)


def test_resolving_fails_when_a_name_is_unknown(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with pytest.raises(NotFound, match="no model 'other'; it has: net"):
        resolve_target("other", profile="careful", config=config, store=None, flags=FLAGS)
    with pytest.raises(NotFound, match="careful, int8"):
        resolve_target("net", profile="fp4", config=config, store=None, flags=FLAGS)


def test_resolving_fails_when_the_path_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    with pytest.raises(InvalidArgument, match=r"expected an \.onnx file"):
        resolve_target(str(tmp_path / "weights.bin"), profile="int8", config=None, store=None, flags=FLAGS)
    with pytest.raises(NotFound, match="no such file"):
        resolve_target(str(tmp_path / "missing.onnx"), profile="int8", config=None, store=None, flags=FLAGS)


def test_resolving_fails_when_the_folder_describes_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InvalidArgument, match=r"config\.json"):
        resolve_target(str(tmp_path), profile="int8", config=None, store=None, flags=FLAGS)
