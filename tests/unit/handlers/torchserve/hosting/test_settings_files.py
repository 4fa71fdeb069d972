from pathlib import Path
from xml.etree import ElementTree

from serveprune.config.server import Address
from serveprune.handlers.torchserve.hosting.addresses import Addresses
from serveprune.handlers.torchserve.hosting.settings_files import (
    LOG_SETTINGS,
    SERVER_LOG,
    WORKERS_LOG,
    RunSettings,
    properties,
)

ADDRESSES = Addresses(*(Address("127.0.0.1", 8000 + number) for number in range(5)))


def test_properties_hold_addresses_and_metrics() -> None:
    settings = RunSettings(
        model_store=Path("/models"),
        models=("m",),
        addresses=ADDRESSES,
        token_auth=True,
        model_api=False,
        metrics_file=Path("/run/metrics.yaml"),
    )
    lines = properties(settings).splitlines()
    assert "inference_address=http://127.0.0.1:8000" in lines
    assert "metrics_address=http://127.0.0.1:8002" in lines
    assert "grpc_inference_port=8003" in lines
    assert "metrics_config=/run/metrics.yaml" in lines
    assert "allowed_urls=file:///models/.*" in lines


def test_properties_are_escaped_as_java_reads_them() -> None:
    settings = RunSettings(
        model_store=Path("/models"),
        models=("m",),
        addresses=ADDRESSES,
        token_auth=True,
        model_api=False,
        metrics_file=Path("/a\\b é 😀"),
    )
    assert r"metrics_config=/a\u005cb \u00e9 \ud83d\ude00" in properties(settings).splitlines()


def test_logs_go_to_the_files_that_are_read_again() -> None:
    files = {each.get("fileName") for each in ElementTree.fromstring(LOG_SETTINGS).iter("RollingFile")}
    assert files == {str(SERVER_LOG), str(WORKERS_LOG)}
