"""The models that may be loaded and unloaded by request, as those who take the requests see them."""

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Protocol

from serveprune.errors import Unimplemented


class LoadableModels(Protocol):
    """Loads and unloads models while the server runs. Thread-safe; no call waits."""

    def load(self, name: str) -> "Future[None]":
        """Begin to load a model, or to replace it if its files have changed; who asks for the same shares the outcome.

        Returns:
            Done when the dense tier answers; fails with a `ServePruneError` when it never will.

        Raises:
            ServePruneError: It can be refused at once.
        """
        ...

    def unload(self, name: str) -> "Future[None]":
        """Begin to unload a model.

        Returns:
            Done when no new request reaches it; those in flight are answered.

        Raises:
            ServePruneError: It can be refused at once.
        """
        ...

    def unloaded(self) -> Mapping[str, str]:
        """Return the names of models that could be loaded, and why each is not."""
        ...


class FixedModels:
    """There are no others than the config names."""

    def load(self, name: str) -> "Future[None]":
        """See `LoadableModels.load`."""
        raise Unimplemented(
            "models come from the configuration file; change it instead of loading or unloading by request, or set "
            "repository.mode: explicit"
        )

    unload = load

    def unloaded(self) -> Mapping[str, str]:
        """See `LoadableModels.unloaded`."""
        return {}
