from pathlib import Path
from typing import Any

import pytest

from serveprune.config.model import ExportedProgramSource, OnnxSource
from serveprune.config.root import ServePruneConfig
from serveprune.config.server import Address
from serveprune.errors import ConfigError
from serveprune.handlers.torchserve.settings import config_of, max_response_bytes, metrics_address, settings_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An unpacked archive."""
    for name in ("model.onnx", "model.pt2", "model.pt"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def config(folder: Path, said: object, *, serialized_file: str | None = None) -> ServePruneConfig:
    return config_of(said, model="m", version="2.1", folder=folder, serialized_file=serialized_file)


def problems(folder: Path, said: object, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config(folder, said, **options)
    return caught.value.message


def test_model_is_named_and_versioned_as_the_archive_is(folder: Path) -> None:
    found = config(folder, {"source": {"onnx": "model.onnx"}, "store": {"path": "/store"}})

    assert list(found.models) == ["m"]
    assert found.model("m").version == "2.1"
    assert found.model("m").source == OnnxSource.model_construct(onnx=folder / "model.onnx")
    assert found.store.path == Path("/store")


def test_weights_of_the_archive_are_the_source_when_none_is_named(folder: Path) -> None:
    onnx = config(folder, {}, serialized_file="model.onnx").model("m").source
    program = config(folder, {}, serialized_file="model.pt2").model("m").source

    assert onnx == OnnxSource.model_construct(onnx=folder / "model.onnx")
    assert program == ExportedProgramSource.model_construct(pt2=folder / "model.pt2")


def test_named_source_goes_before_the_weights_of_the_archive(folder: Path) -> None:
    found = config(folder, {"source": {"pt2": "model.pt2"}}, serialized_file="model.onnx")

    assert isinstance(found.model("m").source, ExportedProgramSource)


def test_source_may_be_outside_of_the_archive(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("models") / "model.onnx"
    outside.write_bytes(b"")

    source = config(folder, {"source": {"onnx": str(outside)}}).model("m").source

    assert source == OnnxSource.model_construct(onnx=outside)


def test_state_dict_alone_is_no_source(folder: Path) -> None:
    assert "handler.serveprune.source" in problems(folder, {}, serialized_file="model.pt")


def test_tiers_profiles_builds_and_deployment_are_taken(folder: Path) -> None:
    found = config(
        folder,
        {
            "source": {"onnx": "model.onnx"},
            "tiers": ["dense", "int8"],
            "profiles": {"int8": {"passes": [{"quantize": {}}]}},
            "builds": {"threads": 2},
            "deployment": {"default_tier": "int8"},
            "max_batch_size": 4,
        },
    )

    assert found.model("m").tiers == ("dense", "int8")
    assert found.builds.threads == 2
    assert found.deployment("m").default_tier == "int8"
    assert found.model("m").max_batch_size == 4


def test_store_is_outside_of_the_archive_when_none_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"source": {"onnx": "model.onnx"}}
    monkeypatch.delenv("SERVEPRUNE_STORE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert config(folder, said).store.path == Path("/cache/serveprune")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert config(folder, said).store.path == Path.home() / ".cache" / "serveprune"
    monkeypatch.setenv("SERVEPRUNE_STORE", "/elsewhere")
    assert config(folder, said).store.path == Path("/elsewhere")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (None, "handler.serveprune: expected a mapping"),
        ([], "handler.serveprune: expected a mapping"),
        ({"source": {"onnx": "none.onnx"}}, "handler.serveprune.source.onnx: expected a file"),
        ({"source": {"onnx": "model.onnx"}, "tiers": ["int9"]}, "handler.serveprune.tiers"),
        ({"source": {"onnx": "model.onnx"}, "tears": []}, "handler.serveprune.tears"),
        ({"source": {"onnx": "model.onnx"}, "deployment": {"default_tier": "no"}}, "handler.serveprune.deployment"),
        ({"source": {"onnx": "model.onnx"}, "builds": {"threads": 0}}, "handler.serveprune.builds.threads"),
        ({"source": {"onnx": "model.onnx"}, "store": 5}, "handler.serveprune.store"),
    ],
)
def test_problem_is_placed_where_it_is_in_the_archive(folder: Path, said: object, expected: str) -> None:
    message = problems(folder, said)

    assert message.startswith("model-config.yaml: ")
    assert expected in message
    assert "models.m" not in message


def written(folder: Path, text: str) -> Any:
    (folder / "model-config.yaml").write_text(f"minWorkers: 1\nhandler:\n  serveprune:\n{text}")
    return settings_of(folder, config_file="model-config.yaml")


def test_file_is_read_as_serveprune_yaml_is(folder: Path) -> None:
    # TorchServe's own reader makes text, 750, False and a date of these.
    text = "    a: 1e-3\n    b: 12:30\n    c: off\n    d: 2024-01-01\n    e: '1.10'\n"
    assert written(folder, text) == {"a": 0.001, "b": "12:30", "c": "off", "d": "2024-01-01", "e": "1.10"}


def test_variables_of_the_environment_are_replaced_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/srv/${NAME}")
    said = written(folder, "    source: {onnx: model.onnx}\n    store: {path: '${PLACE}'}\n")
    assert config(folder, said).store.path == Path("/srv/${NAME}")
    with pytest.raises(ConfigError, match=r"^model-config\.yaml:4: handler\.serveprune\.a: .* variable NOWHERE"):
        written(folder, "    a: ${NOWHERE}\n")


def test_version_that_is_no_text_is_told_to_be_quoted(folder: Path) -> None:
    said = written(folder, "    source: {onnx: model.onnx}\n    version: 1.10\n")
    assert "handler.serveprune.version: expected text, got 1.1; put it in quotes" in problems(folder, said)


def test_broken_file_is_told_with_its_line_and_others_sections_are_not_judged(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model-config\.yaml:5: handler\.serveprune\.a: expected each key once"):
        written(folder, "    a: 1\n    a: 2\n")
    assert written(folder, "    a: 1\npippy:\n  1: ${NOWHERE}\n") == {"a": 1}


def test_nothing_is_said_when_the_archive_has_no_such_file_or_section(folder: Path) -> None:
    assert settings_of(folder, config_file=None) is None
    (folder / "model-config.yaml").write_text("minWorkers: 1\n")
    assert settings_of(folder, config_file="model-config.yaml") is None
    (folder / "model-config.yaml").write_text("handler: [1]\n")
    assert settings_of(folder, config_file="model-config.yaml") is None
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read"):
        settings_of(folder, config_file="gone.yaml")


def test_all_problems_are_said_at_once(folder: Path) -> None:
    message = problems(folder, {"source": {"onnx": "none.onnx"}, "max_batch_size": 0, "profiles": {"dense": {}}})

    assert len(message.splitlines()) >= 3


def test_largest_answer_is_that_of_torchserve_when_none_is_said(folder: Path) -> None:
    said = {"source": {"onnx": "model.onnx"}}

    # As in TorchServe's docs/configuration.md.
    assert max_response_bytes(said) == 6553500
    assert max_response_bytes({**said, "max_response_bytes": 10}) == 10
    assert max_response_bytes({**said, "max_response_bytes": "16MiB"}) == 16 * 2**20
    assert config(folder, {**said, "max_response_bytes": 10}).model("m").version == "2.1"


def test_smaller_one_of_archive_and_environment_is_the_largest_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVEPRUNE_MAX_RESPONSE_BYTES", "8000000")
    assert max_response_bytes({}) == 8_000_000
    assert max_response_bytes({"max_response_bytes": 10}) == 10
    assert max_response_bytes({"max_response_bytes": "16MiB"}) == 8_000_000
    monkeypatch.setenv("SERVEPRUNE_MAX_RESPONSE_BYTES", "much")
    with pytest.raises(ConfigError, match=r"SERVEPRUNE_MAX_RESPONSE_BYTES: what config\.properties has"):
        max_response_bytes({})


@pytest.mark.parametrize("limit", [0, -1, "much", 1.5, True])
def test_largest_answer_that_is_no_number_of_bytes_is_refused(limit: object) -> None:
    with pytest.raises(ConfigError, match=r"model-config\.yaml: handler\.serveprune\.max_response_bytes"):
        max_response_bytes({"max_response_bytes": limit})


def test_page_of_metrics_is_off_unless_an_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERVEPRUNE_METRICS", raising=False)
    assert metrics_address({}) is None

    monkeypatch.setenv("SERVEPRUNE_METRICS", "0.0.0.0:9100")
    assert metrics_address({}) == Address("0.0.0.0", 9100)
    assert metrics_address({"metrics": "127.0.0.1:0"}) == Address("127.0.0.1", 0)


def test_page_of_metrics_is_no_key_of_the_model(folder: Path) -> None:
    config(folder, {"source": {"onnx": "model.onnx"}, "metrics": "127.0.0.1:9100"})


@pytest.mark.parametrize("named", [9100, "9100", "127.0.0.1:99999", True])
def test_address_of_metrics_that_is_none_is_named(named: object) -> None:
    with pytest.raises(ConfigError) as caught:
        metrics_address({"metrics": named})
    assert "model-config.yaml: handler.serveprune.metrics: expected" in caught.value.message


def test_address_of_metrics_in_the_environment_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVEPRUNE_METRICS", "here")
    with pytest.raises(ConfigError) as caught:
        metrics_address({})
    assert "SERVEPRUNE_METRICS: expected" in caught.value.message
