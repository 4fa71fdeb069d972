from pathlib import Path

import pytest
from typer.testing import CliRunner

from serveprune.cli.torchserve import torchserve_app
from serveprune.errors import InvalidArgument, NotFound

CONFIG = """\
models:
  one: {source: {pt2: m.pt2}}
  two: {versions: {"1": {source: {pt2: m.pt2}}, "2": {source: {pt2: m.pt2}}}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "m.pt2").write_bytes(b"program")
    file = tmp_path / "serveprune.yaml"
    file.write_text(CONFIG)
    return file


def _error(config: Path, *options: str) -> BaseException | None:
    arguments = ["package", "--config", str(config), "--out", str(config.parent / "store"), *options]
    return CliRunner().invoke(torchserve_app, arguments).exception


def test_models_are_listed_when_an_unknown_one_is_asked_for(config: Path) -> None:
    error = _error(config, "--model", "three")
    assert isinstance(error, NotFound)
    assert error.message == "--model: expected one of one, two, got 'three'"


def test_models_are_listed_when_there_are_several_and_none_is_named(config: Path) -> None:
    error = _error(config)
    assert isinstance(error, InvalidArgument)
    assert error.message == "--model: expected one of one, two, got nothing"


def test_versions_are_listed_when_an_unknown_one_is_asked_for(config: Path) -> None:
    error = _error(config, "--model", "two", "--version", "3")
    assert isinstance(error, NotFound)
    assert error.message == "--version: expected one of 1, 2 of two, got '3'"
    assert not (config.parent / "store").exists()


@pytest.mark.parametrize("option", ["--max-response-bytes", "--metrics-page"])
def test_what_the_handler_cannot_take_is_told_before_anything_is_written(config: Path, option: str) -> None:
    error = _error(config, "--model", "one", option, "much")
    assert isinstance(error, InvalidArgument)
    assert error.message.startswith(f"{option}: expected")
    assert not (config.parent / "store").exists()
