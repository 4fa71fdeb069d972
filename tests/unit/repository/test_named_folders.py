from pathlib import Path

import pytest
import yaml

from serveprune.config.loading import load_config
from serveprune.config.model import OnnxSource
from serveprune.errors import ConfigError, InvalidArgument
from serveprune.repository.named_folders import described, named_folders

PROFILES = {"int8": {"passes": [{"quantize": {"scheme": "dynamic"}}]}}


def put(folder: Path, *, entry: object = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_text("content")
    if entry is not None:
        (folder / "serveprune.yaml").write_text(yaml.safe_dump(entry))
    return folder


def write(file: Path, **content: object) -> Path:
    file.write_text(yaml.safe_dump({"profiles": PROFILES, **content}))
    return file


def test_folder_is_a_model_of_the_name_that_was_given(tmp_path: Path) -> None:
    folder = put(tmp_path / "mounted")
    models = described(named_folders([f"served={folder}"]))
    config = load_config(write(tmp_path / "c.yaml"), more_models=models)

    assert list(config.models) == ["served"]
    assert config.model("served").source == OnnxSource(onnx=folder / "model.onnx")
    assert config.model("served").tiers == ("dense",)


def test_what_the_file_in_the_folder_says_holds(tmp_path: Path) -> None:
    folder = put(tmp_path / "mounted", entry={"tiers": ["int8"], "max_batch_size": 3, "evaluation": {"file": "e.npz"}})
    (folder / "e.npz").write_text("content")
    deployments = {"served": {"default_tier": "int8"}}
    file = write(tmp_path / "c.yaml", deployments=deployments)
    config = load_config(file, more_models=described({"served": folder}))

    model = config.model("served")
    assert (model.tiers, model.max_batch_size) == (("dense", "int8"), 3)
    assert model.evaluation is not None
    assert model.evaluation.file == folder / "e.npz"
    assert config.deployment("served").default_tier == "int8"


def test_versions_of_a_folder_are_versions_of_the_model(tmp_path: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / "mounted" / version).mkdir(parents=True)
        (tmp_path / "mounted" / version / "model.onnx").write_text("content")
    config = load_config(write(tmp_path / "c.yaml"), more_models=described({"served": tmp_path / "mounted"}))
    assert list(config.models["served"].by_version) == ["1", "2"]


def test_models_of_the_file_stay_beside_it(tmp_path: Path) -> None:
    folder = put(tmp_path / "mounted")
    own = {"own": {"source": {"onnx": str(folder / "model.onnx")}}}
    config = load_config(write(tmp_path / "c.yaml", models=own), more_models=described({"served": folder}))
    assert list(config.models) == ["own", "served"]


@pytest.mark.parametrize("option", ["served", "served=", "=/models", "a/b=/models"])
def test_option_is_refused_that_is_no_name_and_folder(option: str) -> None:
    with pytest.raises(InvalidArgument, match="expected"):
        named_folders([option])


def test_name_is_refused_that_comes_twice(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="served more than once"):
        named_folders([f"served={tmp_path}", f"served={tmp_path}"])
    folder = put(tmp_path / "mounted")
    own = {"served": {"source": {"onnx": str(folder / "model.onnx")}}}
    with pytest.raises(ConfigError, match=r"models\.served: expected another name"):
        load_config(write(tmp_path / "c.yaml", models=own), more_models=described({"served": folder}))


def test_tier_without_profile_is_refused(tmp_path: Path) -> None:
    folder = put(tmp_path / "mounted", entry={"tiers": ["int4"]})
    with pytest.raises(ConfigError, match=r"models\.served\.tiers.*int4"):
        load_config(write(tmp_path / "c.yaml"), more_models=described({"served": folder}))


def test_folder_is_refused_that_is_none_or_has_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"but .* is none"):
        described({"served": tmp_path / "nowhere"})
    with pytest.raises(InvalidArgument, match=r"model served: expected model\.onnx"):
        described({"served": tmp_path})


def test_what_a_repository_refuses_is_refused(tmp_path: Path) -> None:
    folder = put(tmp_path / "mounted")
    (folder / "weights.pkl").write_text("content")
    with pytest.raises(InvalidArgument, match="pickles"):
        described({"served": folder})
    (folder / "weights.pkl").unlink()
    (tmp_path / "outside.npz").write_text("content")
    (folder / "data.npz").symlink_to(tmp_path / "outside.npz")
    with pytest.raises(InvalidArgument, match="leads out"):
        described({"served": folder})
