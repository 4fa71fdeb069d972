"""What became of a config file, as JSON."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from serveprune.artifacts.digest import sha256_json
from serveprune.config.change import Change, TierName
from serveprune.config.problem import path_text
from serveprune.config.root import ServePruneConfig
from serveprune.errors import Code, FailedPrecondition, Internal, InvalidArgument, ServePruneError
from serveprune.reloading.reloader import Reload, ReloadOutcome, change_in_words
from serveprune.routing.tier_selection import QUALIFIER


def reload_document(reload: Reload, *, digest: str) -> dict[str, Any]:
    """Return how a reload ended; every key is always there.

    Args:
        reload: The attempt.
        digest: Of the config that is served since; see `config_digest`.
    """
    return {
        "outcome": str(reload.outcome),
        "ended": datetime.fromtimestamp(reload.ended, UTC).isoformat(timespec="milliseconds"),
        "digest": digest,
        "changes": [_described(change) for change in reload.changes.changes],
        "problems": list(reload.problems),
    }


def rejection(reload: Reload) -> ServePruneError | None:
    """Return the error that a rejected reload is for whoever asked for it; ``None`` if it was not rejected."""
    if reload.outcome is not ReloadOutcome.REJECTED:
        return None
    message = "config not applied: " + "\n".join(reload.problems)
    match reload.code:
        case Code.FAILED_PRECONDITION:
            return FailedPrecondition(message)
        case Code.INVALID_ARGUMENT | Code.NOT_FOUND:
            return InvalidArgument(message)
        case _:
            return Internal(message)


def config_digest(config: ServePruneConfig) -> str:
    """Return the SHA-256 of a config with all its defaults: servers with the same one were told the same."""
    return sha256_json(config.model_dump(mode="json"))


def _described(change: Change) -> dict[str, Any]:
    return {
        "path": path_text(change.path),
        "kind": str(change.kind),
        "text": change_in_words(change),
        "consequence": str(change.consequence),
        "built": _qualified(change.built),
        "loaded": _qualified(change.loaded),
        "note": change.note,
    }


def _qualified(tiers: Iterable[TierName]) -> list[str]:
    return [
        f"{tier.model}{QUALIFIER}{tier.tier}" + (f" (version {tier.version})" if tier.version is not None else "")
        for tier in tiers
    ]
