from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from e2e.graphs import write_contract_models

from serveprune.errors import ConfigError
from serveprune.handlers.ray_serve.accepted_sections import AcceptedSections
from serveprune.handlers.ray_serve.config_source import ConfigSource
from serveprune.handlers.ray_serve.reconfiguring import Reconfiguring
from serveprune.observability import metrics as series
from serveprune.server import Server

DEPLOYED = {("add", "1", "dense"): "add@dense", ("add", "1", "int8"): "add@int8"}
INT8 = {"deployments": {"add": {"default_tier": "int8"}}}
BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"deployments": {"add": {"default_tier": "nothing"}}}, "default_tier"),
    ({"models": {"other": {"source": {"onnx": "add.onnx"}}}}, "has no deployment"),
    ({"store": {"path": "elsewhere"}}, "expected one of the sections"),
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Server, ConfigSource]]:
    write_contract_models(tmp_path)
    file = tmp_path / "serveprune.yaml"
    document = {
        "store": {"path": "store"},
        "profiles": {"int8": {"passes": [{"quantize": {"scheme": "dynamic"}}]}},
        "models": {
            "add": {"source": {"onnx": "add.onnx"}, "evaluation": {"file": "rows.npz"}, "tiers": ["dense", "int8"]}
        },
    }
    write_rows(tmp_path / "rows.npz")
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    source = ConfigSource.read(file)
    server = Server(source.config())
    yield server, source
    server.stop(drain_seconds=0)


def write_rows(file: Path) -> None:
    np.savez(file, a=np.ones((8, 3), dtype=np.float32), b=np.ones((8, 3), dtype=np.float32))


def made(server: Server, source: ConfigSource, folder: Path) -> Reconfiguring:
    return Reconfiguring(server, source, AcceptedSections(folder / "user_config.json"), deployed=DEPLOYED)


def is_good(server: Server) -> bool:
    return server.metrics.registry.get_sample_value(series.CONFIG_RELOAD_SUCCESSFUL.name) == 1


@pytest.mark.parametrize(("bad", "mentions"), BAD)
def test_refused_sections_leave_what_was_applied_last(
    site: tuple[Server, ConfigSource], tmp_path: Path, bad: dict[str, Any], mentions: str
) -> None:
    server, source = site
    reconfiguring = made(server, source, tmp_path)
    reconfiguring.reconfigure(INT8)
    assert is_good(server)
    reconfiguring.reconfigure(bad)
    assert server.registry.get("add").default_tier == "int8"
    assert not is_good(server)
    reconfiguring.reconfigure({})
    assert server.registry.get("add").default_tier == "dense"
    assert is_good(server)


@pytest.mark.parametrize(("bad", "mentions"), BAD)
def test_refused_sections_end_a_first_start(
    site: tuple[Server, ConfigSource], tmp_path: Path, bad: dict[str, Any], mentions: str
) -> None:
    with pytest.raises(ConfigError, match=mentions):
        made(*site, tmp_path).reconfigure(bad)


def test_replica_that_is_started_later_has_what_was_applied_last(
    site: tuple[Server, ConfigSource], tmp_path: Path
) -> None:
    server, source = site
    AcceptedSections(tmp_path / "user_config.json").write(INT8)
    made(server, source, tmp_path).reconfigure(BAD[0][0])
    assert server.registry.get("add").default_tier == "int8"
    assert not is_good(server)


def test_replica_without_user_config_notes_that_the_file_serves(
    site: tuple[Server, ConfigSource], tmp_path: Path
) -> None:
    server, source = site
    reconfiguring = made(server, source, tmp_path)
    reconfiguring.has_started = True
    # So that a first user_config that is refused ends no replica.
    reconfiguring.reconfigure(BAD[0][0])
    assert server.registry.get("add").default_tier == "dense"
