import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from serveprune.config.loading import load_config, load_config_content
from serveprune.config.server import StoreConfig
from serveprune.errors import ConfigError

EXAMPLE = Path(__file__).resolve().parents[3] / "docs" / "shared_store.example.yaml"


def loaded(folder: Path, store: dict[str, Any]) -> StoreConfig:
    document = {"store": store, "models": {}}
    return load_config_content(yaml.safe_dump(document).encode(), name="serveprune.yaml", folder=folder).store


def test_example_of_the_docs_loads(tmp_path: Path) -> None:
    shutil.copy(EXAMPLE, tmp_path)
    (tmp_path / "fashion.onnx").write_bytes(resources.files("serveprune.demo").joinpath("fashion.onnx").read_bytes())
    store = load_config(tmp_path / EXAMPLE.name).store
    assert store.path == "s3://models/serveprune"
    assert store.is_shared
    assert store.folder == Path("/var/cache/serveprune")


def test_folder_is_its_own_place(tmp_path: Path) -> None:
    store = StoreConfig(path=tmp_path / "here")
    assert not store.is_shared
    assert store.folder == store.path == tmp_path / "here"


@pytest.mark.parametrize(
    "options",
    [
        {"secret": "hidden-value"},
        {"key": "hidden-value"},
        {"client_kwargs": {"aws_session_token": "hidden-value"}},
        {"connection_string": "hidden-value"},
    ],
)
def test_credentials_in_options_are_refused_and_not_shown(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID") as raised:
        loaded(tmp_path, {"path": "s3://bucket/prefix", "options": options})
    assert "hidden-value" not in str(raised.value)


def test_password_in_the_url_is_refused_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without credentials") as raised:
        loaded(tmp_path, {"path": "sftp://me:hidden-value@host/folder"})
    assert "hidden-value" not in str(raised.value)


def test_config_comes_back_from_json() -> None:
    # As the child that builds is given it.
    store = StoreConfig(path="s3://bucket/prefix", options={"endpoint_url": "http://127.0.0.1:9"})
    assert StoreConfig.model_validate_json(store.model_dump_json()) == store
