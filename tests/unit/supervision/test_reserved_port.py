import socket
from collections.abc import Iterator

import pytest

from serveprune.config.server import Address
from serveprune.errors import FailedPrecondition
from serveprune.supervision.reserved_port import ReservedPort, reserve_port


@pytest.fixture
def port() -> Iterator[ReservedPort]:
    reserved = reserve_port(Address("127.0.0.1", 0), setting="server.http")
    yield reserved
    reserved.release()


def listener(address: Address, *, sharing: bool) -> socket.socket:
    return socket.create_server(address, reuse_port=sharing)


def test_port_is_a_real_one_when_any_will_do(port: ReservedPort) -> None:
    assert port.address.host == "127.0.0.1"
    assert port.address.port > 0


def test_several_listeners_that_share_get_all_connections(port: ReservedPort) -> None:
    with listener(port.address, sharing=True) as one, listener(port.address, sharing=True) as other:
        accepted = 0
        for _ in range(50):
            with socket.create_connection(port.address, timeout=10):
                one.setblocking(False)
                other.setblocking(False)
                for each in (one, other):
                    try:
                        connection, _ = each.accept()
                    except BlockingIOError:
                        continue
                    connection.close()
                    accepted += 1
    assert accepted == 50


def test_listener_that_does_not_share_is_refused_though_nobody_listens_yet(port: ReservedPort) -> None:
    with pytest.raises(OSError, match="in use"):
        listener(port.address, sharing=False)


def test_port_is_refused_when_it_is_reserved_already(port: ReservedPort) -> None:
    with pytest.raises(FailedPrecondition, match=r"server\.grpc: cannot listen on 127\.0\.0\.1:\d+: Address already"):
        reserve_port(port.address, setting="server.grpc")


@pytest.mark.parametrize("sharing", [False, True])
def test_port_is_refused_when_somebody_listens(sharing: bool) -> None:
    with listener(Address("127.0.0.1", 0), sharing=sharing) as occupant:
        address = Address("127.0.0.1", occupant.getsockname()[1])
        with pytest.raises(FailedPrecondition, match="choose another address"):
            reserve_port(address, setting="server.http")


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_port_is_refused_when_the_host_is_not_this_machine(host: str) -> None:
    with pytest.raises(FailedPrecondition, match=r"server\.http: cannot listen on"):
        reserve_port(Address(host, 0), setting="server.http")


def test_port_is_free_again_when_it_was_released(port: ReservedPort) -> None:
    port.release()
    with listener(port.address, sharing=False):
        pass
    again = reserve_port(port.address, setting="server.http")
    assert again.address == port.address
    again.release()
