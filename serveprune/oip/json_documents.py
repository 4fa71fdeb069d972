"""Everything in the protocol that is JSON and no inference."""

from collections.abc import Iterable, Sequence
from typing import Any

from serveprune.oip.messages import ModelMetadata, RepositoryEntry, ServerMetadata
from serveprune.oip.tensor import TensorSpec


def server_metadata_document(metadata: ServerMetadata) -> dict[str, Any]:
    """Return the answer to ``GET /v2``."""
    return {"name": metadata.name, "version": metadata.version, "extensions": list(metadata.extensions)}


def model_metadata_document(metadata: ModelMetadata) -> dict[str, Any]:
    """Return the answer to ``GET /v2/models/{name}``."""
    return {
        "name": metadata.name,
        "versions": list(metadata.versions),
        "platform": metadata.platform,
        "inputs": _specs(metadata.inputs),
        "outputs": _specs(metadata.outputs),
        "properties": dict(metadata.properties),
    }


def repository_index_document(entries: Iterable[RepositoryEntry]) -> list[dict[str, Any]]:
    """Return the answer to ``POST /v2/repository/index``."""
    return [
        {"name": entry.name, "version": entry.version, "state": entry.state.value, "reason": entry.reason}
        for entry in entries
    ]


def _specs(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    return [{"name": spec.name, "datatype": spec.datatype.value, "shape": list(spec.shape)} for spec in specs]
