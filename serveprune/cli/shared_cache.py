"""`serveprune cache shared`: what machines have in common, of a store whose path is a URL."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from serveprune.artifacts.manifest import Manifest
from serveprune.artifacts.opening import open_store
from serveprune.artifacts.shared_store import SharedArtifactStore
from serveprune.cli.shared_gc import gc
from serveprune.config.loading import load_config
from serveprune.errors import DataLoss, FailedPrecondition, NotFound

_EXIT_CORRUPT = 1
_EXIT_UNPUBLISHED = 1

shared_app = typer.Typer(no_args_is_help=True)
shared_app.command()(gc)

ConfigPath = Annotated[Path, typer.Option("--config", help="Take the store from this file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
_DEFAULT_CONFIG = Path("serveprune.yaml")


@shared_app.command()
def ls(config: ConfigPath = _DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """List the artifacts that all machines have in common, the most recently created first."""
    remote = _opened(config).remote
    found = [(key, _readable(remote.manifest, key)) for key in remote.all_keys()]
    manifests = [one for _, one in found if isinstance(one, Manifest)]
    manifests.sort(key=lambda one: one.created, reverse=True)
    entries = [
        {
            "key": one.key,
            "kind": one.kind,
            "model": one.model,
            "passes": [step.name for step in one.passes],
            "bytes": sum(record.bytes for record in one.files.values()),
            "created": one.created,
        }
        for one in manifests
    ]
    if as_json:
        typer.echo(json.dumps(entries, indent=2))
        return
    for entry in entries:
        passes = ", ".join(entry["passes"]) if isinstance(entry["passes"], list) else ""
        typer.echo(
            f"{entry['key']}  {entry['kind']:5}  {entry['model']}  {entry['bytes']}  {entry['created']}  {passes}"
        )
    typer.echo(f"{len(entries)} artifacts in {remote.storage.url}, {len(found) - len(entries)} unfinished or corrupt")


@shared_app.command()
def verify(config: ConfigPath = _DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Download and digest all artifacts; nothing is changed, and the exit code is 1 if one is corrupt."""
    remote = _opened(config).remote
    problems: dict[str, str | None] = {}
    for key in remote.all_keys():
        manifest = _readable(remote.manifest, key)
        if manifest is None:
            continue  # being published, or left by a machine that died; nobody is given it
        problems[key] = manifest if isinstance(manifest, str) else None
        if isinstance(manifest, Manifest):
            try:
                with TemporaryDirectory() as folder:
                    remote.fetch(manifest, Path(folder))
            except DataLoss as error:
                problems[key] = error.message
    corrupt = {key: problem for key, problem in problems.items() if problem is not None}
    if as_json:
        typer.echo(json.dumps({"ok": not corrupt, "results": problems}, indent=2))
    else:
        for key, problem in corrupt.items():
            typer.echo(f"corrupt: {key}: {problem}")
        typer.echo(f"{len(problems) - len(corrupt)} sound, {len(corrupt)} corrupt")
    if corrupt:
        raise typer.Exit(_EXIT_CORRUPT)


@shared_app.command()
def publish(config: ConfigPath = _DEFAULT_CONFIG) -> None:
    """Put everything there that this machine has and the others lack."""
    store = _opened(config)
    store.note_all_unpublished()
    if not store.publish():
        typer.echo("not everything could be published; the log says why", err=True)
        raise typer.Exit(_EXIT_UNPUBLISHED)
    typer.echo(f"everything in {store.root} is in {store.remote.storage.url}")


@shared_app.command()
def remove(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys in full, as `ls` shows them.")],
    config: ConfigPath = _DEFAULT_CONFIG,
) -> None:
    """Remove artifacts for all machines; what a machine has a copy of goes on there."""
    remote = _opened(config).remote
    known = set(remote.all_keys())
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise NotFound(f"expected keys of artifacts in {remote.storage.url}, got {', '.join(unknown)}")
    for key in keys:
        remote.remove(key)
        typer.echo(f"removed {key}")


def _readable(read: Callable[[str], Manifest | None], key: str) -> Manifest | str | None:
    """Return a manifest, or what is wrong with it."""
    try:
        return read(key)
    except DataLoss as error:
        return error.message


def _opened(config: Path) -> SharedArtifactStore:
    loaded = load_config(config).store
    store = open_store(loaded)
    if not isinstance(store, SharedArtifactStore):
        raise FailedPrecondition(
            f"{config}: expected a URL such as s3://bucket/prefix as store.path, got the folder {loaded.path}"
        )
    return store
