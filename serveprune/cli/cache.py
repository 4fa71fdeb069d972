import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ByteSize
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

from serveprune.artifacts.durability import size_on_disk_bytes
from serveprune.artifacts.store import Artifact, ArtifactStore
from serveprune.cli.compress_target import local_store
from serveprune.cli.shared_cache import shared_app
from serveprune.config.loading import load_config
from serveprune.config.server import StoreConfig
from serveprune.errors import InvalidArgument, NotFound

_DEFAULT_CONFIG = Path("serveprune.yaml")
_EXIT_CORRUPT = 1
_SHORT_KEY = 12
_PIPE_COLUMNS = 200

cache_app = typer.Typer(no_args_is_help=True)
cache_app.add_typer(shared_app, name="shared", help="The side of a shared store that machines have in common.")

StorePath = Annotated[Path | None, typer.Option("--store", help="Folder of the store.")]
ConfigPath = Annotated[
    Path | None,
    typer.Option("--config", help="Take the store from this file. Default: serveprune.yaml, if there is one here."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@cache_app.command()
def ls(store: StorePath = None, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """List the artifacts in the store, the most recently created first."""
    opened = _opened(store, config)
    entries = [_entry(opened, artifact) for artifact in opened.entries()]
    entries.sort(key=lambda entry: entry["created"], reverse=True)
    if as_json:
        typer.echo(json.dumps(entries, indent=2))
        return
    _wide_console().print(_table(entries))
    typer.echo(
        f"{len(entries)} {'artifact' if len(entries) == 1 else 'artifacts'}, {_size(opened.size_bytes())} of "
        f"{_size(opened.max_bytes)} in {opened.root}"
    )


@cache_app.command()
def verify(store: StorePath = None, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Digest everything in the store; what is corrupt is set aside, and the exit code is 1."""
    results = _opened(store, config).verify()
    corrupt = [result for result in results if result.problem is not None]
    if as_json:
        described = [{"path": one.path, "problem": one.problem} for one in results]
        typer.echo(json.dumps({"ok": not corrupt, "results": described}, indent=2))
    else:
        for result in corrupt:
            typer.echo(f"corrupt, set aside in quarantine: {result.path}: {result.problem}")
        typer.echo(f"{len(results) - len(corrupt)} sound, {len(corrupt)} corrupt")
    if corrupt:
        raise typer.Exit(_EXIT_CORRUPT)


@cache_app.command()
def gc(
    store: StorePath = None,
    config: ConfigPath = None,
    max_bytes: Annotated[
        str | None, typer.Option("--max-bytes", help="Bound to use this once, such as 5GiB.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove leftovers, old quarantine, logs and pass cache, and the least recently used artifacts beyond the bound."""
    opened = _opened(store, config, max_bytes=max_bytes)
    before_bytes = size_on_disk_bytes(opened.root)
    removed = opened.collect_garbage()
    # Somebody may have stored something meanwhile; a negative figure would only puzzle.
    freed_bytes = max(0, before_bytes - size_on_disk_bytes(opened.root))
    if as_json:
        typer.echo(json.dumps({"removed": removed, "freed_bytes": freed_bytes}, indent=2))
        return
    for path in removed:
        typer.echo(f"removed {path}")
    typer.echo(f"{len(removed)} removed, {_size(freed_bytes)} freed, {_size(opened.size_bytes())} left")


def _opened(store: Path | None, config: Path | None, *, max_bytes: str | None = None) -> ArtifactStore:
    if store is not None and config is not None:
        raise InvalidArgument("expected --store or --config, got both")
    if store is not None:
        path, bound = local_store(store), StoreConfig().max_bytes
    elif config is not None or _DEFAULT_CONFIG.exists():
        configured = load_config(config or _DEFAULT_CONFIG).store
        path, bound = configured.folder, configured.max_bytes
    else:
        path, bound = StoreConfig().folder, StoreConfig().max_bytes
    if not path.is_dir():
        raise NotFound(
            f"expected an artifact store in {path.absolute()}, and there is no such folder; "
            "name one with --store or --config"
        )
    return ArtifactStore(path, max_bytes=bound if max_bytes is None else _parsed_size(max_bytes))


def _parsed_size(text: str) -> int:
    try:
        return StoreConfig.model_validate({"max_bytes": text}).max_bytes
    except ValueError:
        raise InvalidArgument(f"--max-bytes: expected a size above 0 such as 500MB or 5GiB, got {text!r}") from None


def _entry(store: ArtifactStore, artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    measured = manifest.measurements
    return {
        "key": artifact.key,
        "kind": manifest.kind,
        "model": manifest.model,
        "passes": [one.name for one in manifest.passes],
        "metric": measured.metric if measured else None,
        "quality": json.loads(measured.model_dump_json())["quality"] if measured else {},
        "speedup": measured.latency.speedup if measured else None,
        "bytes": size_on_disk_bytes(artifact.folder),
        "created": manifest.created,
        "leased": store.is_leased(artifact.key),
        "folder": str(artifact.folder),
    }


def _table(entries: list[dict[str, Any]]) -> Table:
    table = Table()
    for column in ("key", "kind", "model", "passes", "quality", "speedup", "size", "created", "in use"):
        justify: JustifyMethod = "right" if column in ("speedup", "size") else "left"
        table.add_column(column, justify=justify, no_wrap=column in ("key", "model", "size"))
    for entry in entries:
        cells = (
            entry["key"][:_SHORT_KEY],
            entry["kind"],
            entry["model"],
            ", ".join(entry["passes"]),
            f"{entry['metric']} {float(entry['quality'][entry['metric']]):.4f}" if entry["metric"] else "",
            f"{entry['speedup']:.2f}x" if entry["speedup"] is not None else "",
            _size(entry["bytes"]),
            _local_time(entry["created"]),
            "loaded" if entry["leased"] else "",
        )
        table.add_row(*map(escape, cells))
    return table


def _wide_console() -> Console:
    console = Console()
    # Without a terminal rich takes 80 columns, and would break cells that somebody wants to grep for.
    return console if console.is_terminal else Console(width=_PIPE_COLUMNS)


def _size(size_bytes: int) -> str:
    return ByteSize(size_bytes).human_readable(separator=" ")


def _local_time(created: str) -> str:
    return datetime.fromisoformat(created).astimezone().strftime("%Y-%m-%d %H:%M")
