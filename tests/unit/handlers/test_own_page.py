import logging
import socket

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge

from serveprune.config.server import Address
from serveprune.handlers.own_page import open_page


@pytest.fixture
def registry() -> CollectorRegistry:
    found = CollectorRegistry()
    Gauge("shown", "For the test.", registry=found).set(4)
    return found


def told_address(caplog: pytest.LogCaptureFixture) -> str:
    return caplog.messages[-1].rpartition(" at ")[2]


def test_page_is_served_at_the_next_port_when_one_is_taken(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        page = open_page(registry, Address("127.0.0.1", port))
    assert page is not None
    try:
        address = told_address(caplog)
        assert port < int(address.rpartition(":")[2].partition("/")[0]) < port + 64
        assert "shown 4.0" in httpx.get(address, trust_env=False).text
    finally:
        page.stop()


def test_port_0_takes_any_that_is_free(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pages = [open_page(registry, Address("127.0.0.1", 0)) for _ in range(2)]
    addresses = [message.rpartition(" at ")[2] for message in caplog.messages]
    assert len(set(addresses)) == 2
    for page in pages:
        assert page is not None
        page.stop()


def test_error_is_logged_when_all_ports_are_taken(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 65535))
        except OSError:
            pytest.skip("the last port is in use")
        taken.listen()
        assert open_page(registry, Address("127.0.0.1", 65535)) is None
    assert "the ports 65535 to 65535 of 127.0.0.1 are taken" in caplog.text


def test_error_is_logged_when_the_host_is_not_of_this_machine(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_page(registry, Address("192.0.2.1", 9100)) is None
    assert "no page with metrics: 192.0.2.1:9100: " in caplog.text
