from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from serveprune.config.server import Address
from serveprune.errors import InvalidArgument
from serveprune.handlers.torchserve.hosting.addresses import Addresses
from serveprune.handlers.torchserve.hosting.settings_files import (
    LOG_SETTINGS,
    SERVER_LOG,
    WORKERS_LOG,
    RunSettings,
    properties,
    worker_variables,
)

ADDRESSES = Addresses(*(Address("127.0.0.1", 8000 + number) for number in range(5)))


def settings_with(**options: Any) -> RunSettings:
    return RunSettings(
        **{
            "model_store": Path("/models"),
            "models": ("m",),
            "addresses": ADDRESSES,
            "token_auth": True,
            "model_api": False,
            "metrics_file": Path("/run/metrics.yaml"),
            **options,
        }
    )


def test_properties_hold_addresses_and_metrics() -> None:
    settings = settings_with()
    lines = properties(settings).splitlines()
    assert "inference_address=http://127.0.0.1:8000" in lines
    assert "metrics_address=http://127.0.0.1:8002" in lines
    assert "grpc_inference_port=8003" in lines
    assert "metrics_config=/run/metrics.yaml" in lines
    assert "allowed_urls=file:///models/.*" in lines


def test_sizes_are_told_to_torchserve_and_to_its_workers() -> None:
    settings = settings_with(max_request_bytes=1000, max_response_bytes=2000, further={"job_queue_size": "500"})
    lines = properties(settings).splitlines()
    assert {"max_request_size=1000", "max_response_size=2000", "job_queue_size=500"} <= set(lines)
    assert worker_variables(settings) == {"SERVEPRUNE_MAX_RESPONSE_BYTES": "2000"}


def test_page_of_metrics_is_told_to_workers() -> None:
    found = worker_variables(settings_with(metrics_page=Address("127.0.0.1", 9100)))
    assert found["SERVEPRUNE_METRICS"] == "127.0.0.1:9100"


@pytest.mark.parametrize("name", ["max_response_size", "inference_address", "enable_model_api"])
def test_property_of_another_option_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"--property {name}: expected a property that no other option is for"):
        properties(settings_with(further={name: "1"}))


def test_properties_are_escaped_as_java_reads_them() -> None:
    settings = settings_with(metrics_file=Path("/a\\b é 😀"))
    assert r"metrics_config=/a\u005cb \u00e9 \ud83d\ude00" in properties(settings).splitlines()


def test_logs_go_to_the_files_that_are_read_again() -> None:
    files = {each.get("fileName") for each in ElementTree.fromstring(LOG_SETTINGS).iter("RollingFile")}
    assert files == {str(SERVER_LOG), str(WORKERS_LOG)}
