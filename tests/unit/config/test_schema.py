from collections.abc import Iterator
from typing import Any

import pytest

from serveprune.config.schema import config_schema


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object within a value, itself included."""
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from mappings(each)
    elif isinstance(value, list):
        for each in value:
            yield from mappings(each)


def test_config_schema_names_its_dialect_and_its_file() -> None:
    schema = config_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "serveprune.yaml"
    assert schema["required"] == ["models"]


def test_config_schema_describes_every_key_and_closes_every_mapping() -> None:
    schema = config_schema()
    objects = [each for each in mappings(schema) if "properties" in each and each.get("type") == "object"]
    assert len(objects) > 10
    for each in objects:
        assert each["additionalProperties"] is False, each["title"]
        for name, key in each["properties"].items():
            assert key.get("description"), f"{each['title']}.{name}"


def test_config_schema_bounds_optional_numbers() -> None:
    # Pydantic leaves a bound out, under a name no validator knows, when it stands at the wrong place.
    definitions = config_schema()["$defs"]
    assert definitions["DatasetConfig"]["properties"]["samples"]["anyOf"][0] == {"type": "integer", "minimum": 1}
    ratio = definitions["GateConfig"]["properties"]["max_latency_ratio"]
    assert ratio["anyOf"][0] == {"type": "number", "exclusiveMinimum": 0}
    assert not any({"gt", "ge", "lt", "le"} & each.keys() for each in mappings(definitions))


def test_config_schema_writes_defaults_as_a_file_does() -> None:
    server = config_schema()["$defs"]["ServerConfig"]["properties"]
    assert server["http"]["default"] == "127.0.0.1:8080"
    assert server["max_request_bytes"]["default"] == 134_217_728


@pytest.mark.parametrize("name", ["TextPreprocessing", "ImagePreprocessing"])
def test_config_schema_requires_the_kind_of_preprocessing(name: str) -> None:
    assert "kind" in config_schema()["$defs"][name]["required"]
