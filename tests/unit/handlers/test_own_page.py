import logging
import socket

import httpx
import pytest
from e2e.server_process import wait_until
from prometheus_client import CollectorRegistry, Gauge

from serveprune.config.server import Address
from serveprune.handlers.own_page import OwnPage


@pytest.fixture
def registry() -> CollectorRegistry:
    found = CollectorRegistry()
    Gauge("shown", "For the test.", registry=found).set(4)
    return found


def last_port() -> socket.socket:
    """Listen where no port follows."""
    try:
        return socket.create_server(("127.0.0.1", 65535))
    except OSError:
        pytest.skip("the last port is in use")


def test_page_is_served_at_the_next_port_when_one_is_taken(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        page = OwnPage(registry, Address("127.0.0.1", port))
        try:
            assert page.address is not None
            assert port < page.address.port < port + 64
            told = caplog.messages[-1].rpartition(" at ")[2]
            assert told == f"http://{page.address}/metrics"
            assert "shown 4.0" in httpx.get(told, trust_env=False).text
        finally:
            page.stop()


def test_page_moves_to_the_port_that_it_was_to_have_when_that_is_free(registry: CollectorRegistry) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wanted = Address("127.0.0.1", taken.getsockname()[1])
        page = OwnPage(registry, wanted, move_seconds=0.01)
        former = page.address
        assert former is not None
        assert former.port > wanted.port
    try:
        wait_until(lambda: page.address == wanted, what="the page has moved")
        assert "shown 4.0" in httpx.get(f"http://{wanted}/metrics", trust_env=False).text

        def is_gone() -> bool:
            try:
                httpx.get(f"http://{former}/metrics", trust_env=False)
            except httpx.TransportError as error:
                return isinstance(error, httpx.ConnectError)
            return False

        wait_until(is_gone, what="nobody listens where it was")
    finally:
        page.stop()


def test_page_that_found_no_place_takes_the_first_that_becomes_free(registry: CollectorRegistry) -> None:
    with last_port():
        page = OwnPage(registry, Address("127.0.0.1", 65535), move_seconds=0.01)
        assert page.address is None
    try:
        wait_until(lambda: page.address is not None, what="the page is there")
        assert "shown 4.0" in httpx.get(f"http://{page.address}/metrics", trust_env=False).text
    finally:
        page.stop()


def test_port_0_takes_any_that_is_free(registry: CollectorRegistry) -> None:
    pages = [OwnPage(registry, Address("127.0.0.1", 0)) for _ in range(2)]
    assert len({str(page.address) for page in pages}) == 2
    for page in pages:
        page.stop()
        assert page.address is None


def test_error_is_logged_when_all_ports_are_taken(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    with last_port():
        OwnPage(registry, Address("127.0.0.1", 65535)).stop()
    assert "the ports 65535 to 65535 of 127.0.0.1 are taken" in caplog.text


def test_error_is_logged_when_the_host_is_not_of_this_machine(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    page = OwnPage(registry, Address("192.0.2.1", 9100))
    assert page.address is None
    assert "no page with metrics: 192.0.2.1:9100: " in caplog.text
