import socket
from contextlib import ExitStack
from dataclasses import dataclass, fields

from serveprune.config.server import Address
from serveprune.errors import FailedPrecondition


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a TorchServe listens; with port 0, where it is going to."""

    inference: Address
    management: Address
    metrics: Address
    grpc: Address
    grpc_management: Address

    def settled(self) -> "Addresses":
        """Return the same with free ports in the place of 0, which TorchServe would take and tell nobody.

        Until TorchServe has them, anybody else may still take them.

        Raises:
            FailedPrecondition: One is taken, or is none of this machine.
        """
        with ExitStack() as held:
            return Addresses(*(_free(each, held, name=name) for name, each in self._named()))

    def _named(self) -> list[tuple[str, Address]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]

    def texts(self) -> dict[str, str]:
        """Return them as text, by name."""
        return {name: str(address) for name, address in self._named()}


def _free(address: Address, held: ExitStack, *, name: str) -> Address:
    try:
        family, _, _, _, at = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        listener = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
        # What was open a minute ago does not stand in the way, as for TorchServe.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(at)
        listener.listen(1)
    except OSError as error:
        option = f"--{name.replace('_', '-')}"
        raise FailedPrecondition(
            f"{option} {address}: cannot be listened on: {error.strerror}; give another, or port 0 for any free one"
        ) from None
    return Address(address.host, listener.getsockname()[1])
