import socket

import pytest

from serveprune.config.server import Address
from serveprune.errors import FailedPrecondition
from serveprune.handlers.torchserve.hosting.addresses import Addresses

ANY = Address("127.0.0.1", 0)


def test_free_ports_are_different_ones_that_can_be_taken() -> None:
    settled = Addresses(ANY, ANY, ANY, ANY, ANY).settled()

    ports = {int(text.rpartition(":")[2]) for text in settled.texts().values()}
    assert len(ports) == 5
    for port in ports:
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_taken_port_is_told_with_the_option_that_gives_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(FailedPrecondition, match=rf"--grpc-management {address}: cannot be listened on: Address"):
            Addresses(ANY, ANY, ANY, ANY, address).settled()


def test_port_given_twice_is_told() -> None:
    settled = Addresses(ANY, ANY, ANY, ANY, ANY).settled()
    with pytest.raises(FailedPrecondition, match="--management"):
        Addresses(settled.inference, settled.inference, ANY, ANY, ANY).settled()
