"""What the supervisor and its serving processes tell each other: one JSON document a line."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from serveprune.artifacts.builder import BuildProgress, BuildRequest, BuildResult
from serveprune.config.root import ServePruneConfig
from serveprune.config.server import ListenAddress
from serveprune.errors import Code
from serveprune.frontends.http.operator_call import OperatorAnswer, OperatorCall
from serveprune.rollouts.rollouts import Observation

_CHUNK_BYTES = 65536

Contents = tuple[tuple[str, str, str], ...]
"""Name and version of models, and what their files are like; see `Server`."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Begin(_Message):
    """Supervisor to process, first of all: what to serve, and as which one."""

    kind: Literal["begin"] = "begin"
    config: ServePruneConfig
    process: str
    series_folder: Path
    contents: Contents = ()
    number: int = 0


class Apply(_Message):
    """Supervisor to process: what to serve from now on."""

    kind: Literal["apply"] = "apply"
    config: ServePruneConfig
    contents: Contents = ()
    number: int = Field(default=0, description="Counts up; the process says which one it stands by.")


class Listen(_Message):
    """Supervisor to process: open your ports."""

    kind: Literal["listen"] = "listen"


class Listening(_Message):
    """Process to supervisor: all its ports are open."""

    kind: Literal["listening"] = "listening"
    http: ListenAddress
    grpc: ListenAddress


class NotStarted(_Message):
    """Process to supervisor: it cannot serve, and ends."""

    kind: Literal["not-started"] = "not-started"
    message: str
    code: Code


class Standing(_Message):
    """Process to supervisor, whenever it changes: how the tiers of all models stand, ready for JSON."""

    kind: Literal["standing"] = "standing"
    models: tuple[dict[str, Any], ...]
    settled: bool
    number: int = Field(default=0, description="Of the config that was applied last.")
    answers: bool = Field(description="Every model is ready, or will not become so by itself.")


class BuildAsked(_Message):
    """Process to supervisor: it needs an artifact that the store has not."""

    kind: Literal["build-asked"] = "build-asked"
    number: int = Field(description="The process's own, to know the answers by.")
    request: BuildRequest


class BuildProgressed(_Message):
    """Supervisor to process."""

    kind: Literal["build-progressed"] = "build-progressed"
    number: int
    progress: BuildProgress


class BuildEnded(_Message):
    """Supervisor to process."""

    kind: Literal["build-ended"] = "build-ended"
    number: int
    result: BuildResult


class Observed(_Message):
    """Process to supervisor, four times a second where there are canaries: what they were up to."""

    kind: Literal["observed"] = "observed"
    models: dict[str, Observation]


class Spread(_Message):
    """Supervisor to process: so many percent of a model's requests for its canary, if it serves this artifact."""

    kind: Literal["spread"] = "spread"
    model: str
    percent: int
    artifact: str | None


class ChangeAsked(_Message):
    """Process to supervisor: a client asks to load or unload a model of the repository."""

    kind: Literal["change-asked"] = "change-asked"
    number: int = Field(description="The process's own, to know the answer by.")
    action: Literal["load", "unload"]
    name: str


class ChangeEnded(_Message):
    """Supervisor to process: how it ended, in all processes."""

    kind: Literal["change-ended"] = "change-ended"
    number: int
    code: Code | None = Field(default=None, description="Of the error; none if it went well.")
    message: str = ""


class Told(_Message):
    """Supervisor to process, whenever it changes: what only the supervisor knows of what the page shows."""

    kind: Literal["told"] = "told"
    rollouts: tuple[dict[str, Any], ...]
    changes: tuple[dict[str, Any], ...]
    config: dict[str, Any] | None


class OperatorAsked(_Message):
    """Process to supervisor: a call to the admin API came through the page."""

    kind: Literal["operator-asked"] = "operator-asked"
    number: int = Field(description="The process's own, to know the answer by.")
    call: OperatorCall


class OperatorAnswered(_Message):
    """Supervisor to process: what the admin API said, or why it could not be asked."""

    kind: Literal["operator-answered"] = "operator-answered"
    number: int
    answer: OperatorAnswer | None = None
    message: str = ""


class CheckAsked(_Message):
    """Supervisor to process: send real requests to every tier."""

    kind: Literal["check-asked"] = "check-asked"
    http: ListenAddress
    grpc: ListenAddress
    metrics: ListenAddress


class Checked(_Message):
    """Process to supervisor: what was wrong."""

    kind: Literal["checked"] = "checked"
    problems: tuple[str, ...]


Message = (
    Begin
    | Apply
    | Listen
    | Listening
    | NotStarted
    | Standing
    | BuildAsked
    | BuildProgressed
    | BuildEnded
    | Observed
    | Spread
    | ChangeAsked
    | ChangeEnded
    | Told
    | OperatorAsked
    | OperatorAnswered
    | CheckAsked
    | Checked
)
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


class Channel:
    """One end of a connection between supervisor and process. Any thread may send; one reads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._pending = b""

    def fileno(self) -> int:
        """Return the descriptor, for selectors."""
        return self._connection.fileno()

    def send(self, message: Message) -> bool:
        """Send a message, and return whether that was possible; half a message closes the channel."""
        line = message.model_dump_json().encode() + b"\n"
        with self._sending:
            try:
                self._connection.sendall(line)
            except OSError:
                with contextlib.suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)
                return False
        return True

    def receive(self) -> list[Message] | None:
        """Wait for messages, and return those that are complete; ``None`` once the other end is gone."""
        try:
            chunk = self._connection.recv(_CHUNK_BYTES)
        except OSError:
            return None
        if not chunk:
            return None
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        return [_MESSAGE.validate_json(line) for line in lines]

    def messages(self) -> Iterator[Message]:
        """Yield what comes, until the other end is gone."""
        while (received := self.receive()) is not None:
            yield from received

    def close(self) -> None:
        """Close this end; idempotent."""
        self._connection.close()
