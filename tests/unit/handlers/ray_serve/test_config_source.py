from pathlib import Path
from typing import Any

import pytest
import yaml

from serveprune.errors import ConfigError
from serveprune.handlers.ray_serve.config_source import ConfigSource


def written(folder: Path, **sections: Any) -> Path:
    (folder / "m.onnx").touch()
    file = folder / "serveprune.yaml"
    document = {"store": {"path": "store"}, "models": {"m": {"source": {"onnx": "m.onnx"}}}, **sections}
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    return file


def test_sections_take_the_place_of_the_files(tmp_path: Path) -> None:
    source = ConfigSource.read(written(tmp_path))
    file = source.config()
    assert file.store.path == tmp_path / "store"
    changed = source.config({"models": {"n": {"source": {"onnx": "m.onnx"}}}})
    assert list(changed.models) == ["n"]
    assert changed.store == file.store


def test_sections_do_not_read_the_environment(tmp_path: Path) -> None:
    # Whoever may send one need not be who may read it.
    source = ConfigSource.read(written(tmp_path))
    with pytest.raises(ConfigError, match=r"\$\{HOME\}"):
        source.config({"models": {"n": {"source": {"onnx": "${HOME}/m.onnx"}}}})


@pytest.mark.parametrize(
    ("sections", "mentions"),
    [
        ({"server": {}}, r"user_config\.server: expected one of the sections"),
        ({"models": {"m": {}}}, r"user_config: models\.m"),
        ({"deployments": {"other": {}}}, r"user_config: deployments\.other"),
        ({"'text'": None}, "user_config.'text'"),
    ],
)
def test_wrong_sections_are_named(tmp_path: Path, sections: dict[str, Any], mentions: str) -> None:
    with pytest.raises(ConfigError, match=mentions):
        ConfigSource.read(written(tmp_path)).config(sections)


@pytest.mark.parametrize(
    ("sections", "mentions"),
    [
        ({"server": {"processes": 2}}, r"server\.processes"),
        ({"repository": {"path": ".", "mode": "poll"}}, r"repository\.mode"),
    ],
)
def test_what_is_not_for_ray_serve_is_refused(tmp_path: Path, sections: dict[str, Any], mentions: str) -> None:
    with pytest.raises(ConfigError, match=mentions):
        ConfigSource.read(written(tmp_path, **sections))
