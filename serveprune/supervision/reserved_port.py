"""A port that several processes of ours will listen on, and nobody else."""

import socket
from dataclasses import dataclass

from serveprune.config.server import Address
from serveprune.errors import FailedPrecondition


@dataclass(frozen=True, slots=True)
class ReservedPort:
    """Keeps a port for processes of this user that bind it with SO_REUSEPORT, until `release`.

    The kernel hands new connections to listening sockets only, and this one never listens.

    Attributes:
        address: With the real port.
    """

    address: Address
    _bound: socket.socket
    _claim: socket.socket

    def release(self) -> None:
        """Give the port up; processes that listen on it go on."""
        self._bound.close()
        self._claim.close()


def reserve_port(address: Address, *, setting: str) -> ReservedPort:
    """Take a port that nobody listens on, port 0 any free one.

    Args:
        address: Where.
        setting: Name of the address in the config, for the message.

    Raises:
        FailedPrecondition: Somebody listens there, or is about to, or the host is another machine's.
    """
    opened: list[socket.socket] = []
    try:
        family, *_, target = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        opened.append(bound)
        # As every server does: connections of the one before, in TIME_WAIT, are no reason to wait.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Without SO_REUSEPORT, so that this fails where another process listens, even one that would share.
        bound.bind((target[0], target[1]))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # From now on whoever binds without SO_REUSEPORT is refused, though nobody listens yet.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        real = Address(address.host, bound.getsockname()[1])
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        opened.append(claim)
        # Not every kernel keeps the promise above; before anything listens this name does, within the same
        # network namespace as the port.
        claim.bind(f"\0serveprune/{target[0]}:{real.port}")
    except OSError as error:
        for one in opened:
            one.close()
        raise FailedPrecondition(
            f"{setting}: cannot listen on {address}: {error.strerror or error}; choose another address"
        ) from None
    return ReservedPort(real, bound, claim)
