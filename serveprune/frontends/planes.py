"""What the front end needs of the serving core; ``serving.DataPlane`` and ``serving.ControlPlane`` have it."""

from concurrent.futures import Future
from typing import Any, Protocol

from serveprune.observability.request_record import RequestRecord
from serveprune.oip.answer import Answer
from serveprune.oip.messages import (
    InferenceRequest,
    ModelMetadata,
    RepositoryEntry,
    ServerMetadata,
)


class DataPlane(Protocol):
    """Answers inference and metadata. Every method may raise ``ServePruneError`` and none may block."""

    def submit(self, request: InferenceRequest, *, more: bool = False, record: RequestRecord | None = None) -> Answer:
        """Start answering; it is cancelled when the caller has left.

        Args:
            request: As it was decoded.
            more: Others follow at once, which may share its run; the last one is followed by `proceed`.
            record: Gets what happens to the request noted.
        """
        ...

    def proceed(self) -> None:
        """Go on with the requests after which more were to come."""
        ...

    def live(self) -> bool:
        """Tell whether the process answers at all."""
        ...

    def ready(self) -> bool:
        """Tell whether every model can be served."""
        ...

    def server_metadata(self) -> ServerMetadata:
        """Return who answers."""
        ...

    def model_ready(self, name: str, *, version: str | None) -> bool:
        """Tell whether a model, or one tier of it, can be served now."""
        ...

    def model_metadata(self, name: str, *, version: str | None) -> ModelMetadata:
        """Return what a model or one of its tiers takes and gives."""
        ...


class ControlPlane(Protocol):
    """Tells what is registered, and changes it. Every method may raise ``ServePruneError`` and none may block."""

    def index(self, *, ready_only: bool = False) -> list[RepositoryEntry]:
        """Return the repository index."""
        ...

    def tiers(self, name: str, *, version: str | None) -> dict[str, Any]:
        """Return the tiers of a model, ready to be JSON."""
        ...

    def load(self, name: str) -> "Future[None]":
        """Begin to load a model of the repository; done when it answers."""
        ...

    def unload(self, name: str) -> "Future[None]":
        """Begin to unload a model of the repository; done when nothing new reaches it."""
        ...
