import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from serveprune.cli.change_table import change_console, show_changes
from serveprune.config.change import Change, ConfigChanges, TierName
from serveprune.config.changes import config_changes
from serveprune.config.loading import load_config, load_config_content
from serveprune.config.problem import path_text
from serveprune.config.root import ServePruneConfig
from serveprune.config.value_text import plain_value
from serveprune.errors import ConfigError, InvalidArgument
from serveprune.routing.tier_selection import QUALIFIER

_EXIT_DIFFERENT = 1
_EXIT_BAD_INPUT = 2
_STDIN = Path("-")


def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The serveprune.yaml that a server runs with.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The one that it is to run with.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Show what changes from one configuration to another, and what that takes in a running server.

    At once: nothing else. Load: tiers are judged, loaded and warmed anew.
    Build: artifacts are built, judged and warmed first, but for what the
    store has. Restart: the server takes it on when it is started again.

    Comments, the order of keys, and defaults that are written out are no
    change; the order of a model's tiers is one. Data and model files are
    compared by name, not by content.

    Relative paths are those of each file's own folder. A dash reads standard
    input as if it lay beside the other file:
    git show HEAD:serveprune.yaml | serveprune config diff - serveprune.yaml

    Exit status: 0 no difference, 1 some difference, 2 a file cannot be read
    or is invalid.
    """
    try:
        changes = config_changes(*_both(old, new))
    except (ConfigError, InvalidArgument) as error:
        if not as_json:
            raise
        problems = error.problems if isinstance(error, ConfigError) else (error.message,)
        typer.echo(json.dumps(_report(ConfigChanges(), problems=problems), indent=2))
        raise typer.Exit(_EXIT_BAD_INPUT) from error
    if as_json:
        typer.echo(json.dumps(_report(changes), indent=2))
    elif changes:
        show_changes(changes, change_console())
    else:
        typer.echo("no difference")
    if changes:
        raise typer.Exit(_EXIT_DIFFERENT)


def _both(old: Path, new: Path) -> tuple[ServePruneConfig, ServePruneConfig]:
    """Load both configs.

    Raises:
        ConfigError: All that is wrong in either of them.
        InvalidArgument: Both are standard input.
    """
    if old == new == _STDIN:
        raise InvalidArgument("expected a file beside standard input, got - twice")
    loaded: list[ServePruneConfig] = []
    problems: list[str] = []
    for path, other in ((old, new), (new, old)):
        try:
            loaded.append(_loaded(path, beside=other))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    before, after = loaded
    return before, after


def _loaded(path: Path, *, beside: Path) -> ServePruneConfig:
    if path == _STDIN:
        return load_config_content(sys.stdin.buffer.read(), name="<stdin>", folder=beside.parent)
    return load_config(path)


def _report(changes: ConfigChanges, *, problems: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "problems": list(problems),
        "changes": [_described(change) for change in changes.changes],
        "built": _qualified(changes.built),
        "loaded": _qualified(changes.loaded),
        "needing_restart": [path_text(change.path) for change in changes.needing_restart],
    }


def _described(change: Change) -> dict[str, Any]:
    return {
        "path": path_text(change.path),
        "kind": str(change.kind),
        "old": plain_value(change.old),
        "new": plain_value(change.new),
        "consequence": str(change.consequence),
        "built": _qualified(change.built),
        "loaded": _qualified(change.loaded),
        "note": change.note,
    }


def _qualified(tiers: tuple[TierName, ...]) -> list[str]:
    return [
        f"{tier.model}{QUALIFIER}{tier.tier}{f' of version {tier.version}' if tier.version else ''}" for tier in tiers
    ]
