"""A call to the admin API that came to the HTTP port, through its page; see `docs/ui.md`."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from serveprune.errors import Unavailable


@dataclass(frozen=True, slots=True)
class OperatorCall:
    """What was asked; nobody has looked at its token yet. Each character of a text stands for a byte.

    Attributes:
        path: Of the admin API, still percent-encoded.
        shown: The values of the header ``authorization``.
        client: Address and port of who asked, for the audit log.
    """

    method: str
    path: str
    query: str
    shown: tuple[str, ...]
    body: str
    client: tuple[str, int] | None

    def __repr__(self) -> str:
        # Without the token.
        return f"OperatorCall({self.method} {self.path!r} from {self.client})"


@dataclass(frozen=True, slots=True)
class OperatorAnswer:
    """What the admin API said; each character of the body stands for a byte."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: str


AskOperators = Callable[[OperatorCall], "Future[OperatorAnswer]"]
"""May raise ``ServePruneError``; does not block."""


class AdmittedOperators:
    """`AskOperators` of a server whose admin API opens after its page. Thread-safe."""

    def __init__(self) -> None:
        self._ask: AskOperators | None = None

    def admit(self, ask: AskOperators) -> None:
        """Have calls answered from now on."""
        self._ask = ask

    def ask(self, call: OperatorCall) -> "Future[OperatorAnswer]":
        """See `AskOperators`."""
        if self._ask is None:
            raise Unavailable("the admin API is not open yet, or no more", retry_after_seconds=1.0)
        return self._ask(call)
