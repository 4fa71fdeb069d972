import json
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import yaml

from serveprune.config.loading import load_config_content
from serveprune.config.model import ModelConfig
from serveprune.config.root import ServePruneConfig
from serveprune.errors import FailedPrecondition
from serveprune.handlers.torchserve.archiving.archive import Frontend, write_archive


@pytest.fixture(scope="module", autouse=True)
def archiver() -> None:
    try:
        distribution("torch-model-archiver")
    except PackageNotFoundError:
        pytest.skip('torch-model-archiver is missing: pip install "serveprune[torchserve]"')


@pytest.fixture
def config(tmp_path: Path) -> ServePruneConfig:
    (tmp_path / "given.pt2").write_bytes(b"program")
    document: dict[str, Any] = {"models": {"m": {"source": {"pt2": "given.pt2"}, "version": "3", "max_batch_size": 8}}}
    return load_config_content(json.dumps(document).encode(), name="serveprune.yaml", folder=tmp_path)


def _write(config: ServePruneConfig, out: Path, *, replace: bool = False) -> Path:
    return write_archive(config, config.model("m"), name="m", out=out, frontend=Frontend(), replace=replace)


def test_archive_holds_files_config_handler_and_manifest(config: ServePruneConfig, tmp_path: Path) -> None:
    archive = _write(config, tmp_path / "models" / "store")

    assert archive == tmp_path / "models" / "store" / "m.mar"
    assert [path.name for path in archive.parent.iterdir()] == ["m.mar"]
    with zipfile.ZipFile(archive) as opened:
        assert opened.read("model-files/source/given.pt2") == b"program"
        manifest = json.loads(opened.read("MAR-INF/MANIFEST.json"))["model"]
        settings = yaml.safe_load(opened.read(manifest["configFile"]))
        handler = opened.read(manifest["handler"]).decode()
    assert (manifest["modelName"], manifest["modelVersion"]) == ("m", "3")
    assert settings["batchSize"] == 8
    assert settings["handler"]["serveprune"]["source"] == {"pt2": "model-files/source/given.pt2"}
    assert settings["handler"]["serveprune"]["store"] == {"path": str(tmp_path / ".serveprune")}
    assert handler.count("\nclass ") == 1


def test_archive_that_exists_is_replaced_only_when_that_is_said(config: ServePruneConfig, tmp_path: Path) -> None:
    archive = tmp_path / "m.mar"
    archive.write_bytes(b"another")
    with pytest.raises(FailedPrecondition, match="exists already; --force replaces it"):
        _write(config, tmp_path)
    assert archive.read_bytes() == b"another"

    _write(config, tmp_path, replace=True)
    assert zipfile.is_zipfile(archive)


def test_nothing_is_left_when_the_archiver_fails(
    config: ServePruneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(FailedPrecondition, match="model m: torch-model-archiver ended with 1: no reason given"):
        _write(config, tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize(
    ("frontend", "delay_ms", "expected"),
    [
        (Frontend(), 0.0, (1, 32, 1)),
        (Frontend(), 4.4, (1, 32, 4)),
        (Frontend(workers=2, batch_size=1, max_batch_delay_ms=0), 4.4, (2, 1, 0)),
    ],
)
def test_frontend_takes_from_the_model_what_is_not_said(
    frontend: Frontend, delay_ms: float, expected: tuple[int, int, int]
) -> None:
    model = ModelConfig.model_validate({"source": {"pt2": "m.pt2"}, "max_queue_delay_ms": delay_ms})
    keys = frontend.keys(model)
    assert (keys["minWorkers"], keys["batchSize"], keys["maxBatchDelay"]) == expected
    assert keys["maxWorkers"] == keys["minWorkers"]
