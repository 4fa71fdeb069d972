"""From the config to the store, local or shared."""

from collections.abc import Callable

from serveprune.artifacts.object_storage import ObjectStorage
from serveprune.artifacts.remote import RemoteArtifacts
from serveprune.artifacts.shared_store import SharedArtifactStore
from serveprune.artifacts.store import ArtifactStore, StoreEvent, ignore
from serveprune.config.server import StoreConfig


def open_store(config: StoreConfig, *, on_event: Callable[[StoreEvent], None] = ignore) -> ArtifactStore:
    """Return the store that a config describes; nothing is read, written or connected to yet."""
    if not isinstance(config.path, str):
        return ArtifactStore(config.path, max_bytes=config.max_bytes, on_event=on_event)
    return SharedArtifactStore(
        config.cache_path,
        RemoteArtifacts(
            ObjectStorage(config.path, options=config.options, timeout_seconds=float(config.timeout_seconds))
        ),
        max_bytes=config.max_bytes,
        on_event=on_event,
    )
