"""`serveprune cache shared gc`: what no config asks for goes from the store that machines share."""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ByteSize

from serveprune.artifacts.opening import open_store
from serveprune.artifacts.shared_garbage import Asked, Garbage, SharedGarbage
from serveprune.artifacts.shared_store import SharedArtifactStore
from serveprune.config.loading import load_config
from serveprune.config.model import DENSE, ModelEntry
from serveprune.config.root import ServePruneConfig
from serveprune.errors import FailedPrecondition, InvalidArgument
from serveprune.repository.model_folder import ModelFolder

_SHORTEST = timedelta(hours=1)
"""A publisher that is slow, and one whose clock is wrong by minutes, must not lose what it puts."""


def gc(
    config: Annotated[
        list[Path] | None,
        typer.Option(help="What is served from the store; once for each config there is. Default: serveprune.yaml."),
    ] = None,
    days: Annotated[
        float, typer.Option(min=0, help="Spare what nobody asks for if it was published within so many days.")
    ] = 7.0,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it. Default: say what would be removed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Remove, for all machines, the artifacts that none of these configs asks for, and what dead publishers left.

    Whatever the models and tiers of a config, and the folders of its model repository, are found by stays, in whatever
    environment it was made. What a machine has a copy of goes on there; what is asked for after all is built again.
    """
    files = config or [Path("serveprune.yaml")]
    configs = [load_config(file) for file in files]
    store = _one_store(files, configs)
    now = datetime.now(UTC)
    spared = max(_SHORTEST, timedelta(seconds=max(float(one.store.lease_seconds) for one in configs)))
    garbage = SharedGarbage(store.remote, unasked_before=now - timedelta(days=days), dead_before=now - spared)
    found = garbage.find([one for each in configs for one in _asked(each)])
    for one in found if yes else ():
        garbage.remove(one)
    if as_json:
        removed = [{"kind": one.kind, "name": one.name, "written": one.written.isoformat()} for one in found]
        typer.echo(json.dumps({"done": yes, "removed": removed, "bytes": sum(one.bytes for one in found)}, indent=2))
    else:
        _show(found, store.remote.storage.url, done=yes)


def _one_store(files: Iterable[Path], configs: Iterable[ServePruneConfig]) -> SharedArtifactStore:
    """Return the store that all configs share.

    Raises:
        InvalidArgument: They name different ones.
        FailedPrecondition: It is a folder.
    """
    stores = {str(one.store.path): one.store for one in configs}
    if len(stores) > 1:
        raise InvalidArgument(f"expected configs with one store.path, got {', '.join(stores)}")
    (path, settings), *_ = stores.items()
    store = open_store(settings)
    if not isinstance(store, SharedArtifactStore):
        named = ", ".join(map(str, files))
        raise FailedPrecondition(
            f"{named}: expected a URL such as s3://bucket/prefix as store.path, got the folder {path}; "
            "`serveprune cache gc` is for folders"
        )
    return store


def _asked(config: ServePruneConfig) -> Iterator[Asked]:
    """Yield all that a config may serve: every version, also of what is not loaded now."""
    for entry in (*config.models.values(), *_repository(config)):
        # A tier without a profile is one that the server would refuse, too.
        profiles = tuple(config.profiles[tier] for tier in entry.tiers if tier != DENSE and tier in config.profiles)
        for model in entry.by_version.values():
            yield Asked(model, profiles, threads=config.server.threads_per_executor)


def _repository(config: ServePruneConfig) -> Iterator[ModelEntry]:
    if config.repository.mode != "none":
        folder = ModelFolder(config.repository.path)
        for name in folder.names():
            yield folder.read(name).entry


def _show(found: Iterable[Garbage], url: str, *, done: bool) -> None:
    verb = "removed" if done else "would remove"
    listed = list(found)
    for one in listed:
        described = ""
        if one.manifest is not None:
            made_by = " + ".join(step.name for step in one.manifest.passes) or one.manifest.kind
            described = f"  {one.manifest.model}  {made_by}  {_size(one.bytes)}"
        typer.echo(f"{verb} {one.kind:8}  {one.name}{described}  of {one.written:%Y-%m-%d %H:%M} UTC")
    artifacts = sum(one.kind == "artifact" for one in listed)
    typer.echo(
        f"{artifacts} artifacts ({_size(sum(one.bytes for one in listed))}) and {len(listed) - artifacts} leftovers "
        f"{'removed from' if done else 'could go from'} {url}"
    )
    if listed and not done:
        typer.echo("nothing was removed; --yes removes it")


def _size(size_bytes: int) -> str:
    return ByteSize(size_bytes).human_readable(separator=" ")
