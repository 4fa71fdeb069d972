"""Changes of a config as text for people."""

from collections.abc import Iterable, Iterator
from itertools import groupby

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from serveprune.config.change import Change, ConfigChanges, Consequence, TierName
from serveprune.config.differences import DifferenceKind
from serveprune.config.problem import KeyPath, path_text
from serveprune.config.value_text import changed_texts, value_text
from serveprune.routing.tier_selection import QUALIFIER

_NAMED = ("models", "profiles", "deployments")
_PIPE_COLUMNS = 100_000
_MARKS = {
    DifferenceKind.ADDED: ("+", "green"),
    DifferenceKind.REMOVED: ("-", "red"),
    DifferenceKind.CHANGED: ("~", ""),
}
_WORDS = {
    Consequence.AT_ONCE: ("at once", "green"),
    Consequence.LOAD: ("load", "cyan"),
    Consequence.BUILD: ("build", "yellow"),
    Consequence.RESTART: ("restart", "bold red"),
}


def change_console() -> Console:
    """Return a console for changes: as wide as the terminal, or with a line for each change where there is none."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_COLUMNS)


def show_changes(changes: ConfigChanges, console: Console) -> None:
    """Print changes by what they are of, and then what they come to for a running server."""
    for title, group in groupby(changes.changes, key=lambda change: path_text(_owner(change.path))):
        console.print(Text(title, style="bold"))
        for change in group:
            mark, style = _MARKS[change.kind]
            console.print(_line(Text(mark, style=style), consequence_word(change.consequence), _said(change)))
        console.print()
    count = len(changes.changes)
    console.print(Text(f"{count} {'change' if count == 1 else 'changes'}, in a running server:", style="bold"))
    for consequence, text in _summary(changes):
        console.print(_line(consequence_word(consequence), Text(text)))


def _owner(path: KeyPath) -> KeyPath:
    """Return the path of what a change is of: a model, a profile, a deployment or a section."""
    return path[:2] if path[0] in _NAMED else path[:1]


def _line(*cells: Text) -> Padding:
    """Return one line; the last cell goes on below its own beginning where the terminal is narrow."""
    line = Table.grid(padding=(0, 2, 0, 0))
    for _ in cells[:-1]:
        line.add_column(no_wrap=True)
    line.add_column(overflow="fold")
    line.add_row(*cells)
    return Padding(line, (0, 0, 0, 2), expand=False)


def consequence_word(consequence: Consequence) -> Text:
    """Return what a change takes, in a word."""
    word, style = _WORDS[consequence]
    return Text(f"{word:7}", style=style)


def _said(change: Change) -> Text:
    setting = path_text(change.path[len(_owner(change.path)) :]) or str(change.kind)
    remarks = [_names(change.built or change.loaded, of_model=_model(change.path)), change.note]
    remark = "; ".join(filter(None, remarks))
    return Text.assemble(f"{setting}: ", *_values(change), (f"  ({remark})" if remark else "", "dim"))


def _values(change: Change) -> tuple[str | tuple[str, str], ...]:
    match change.kind:
        case DifferenceKind.ADDED:
            return (value_text(change.new),)
        case DifferenceKind.REMOVED:
            return (value_text(change.old),)
        case DifferenceKind.CHANGED:
            old, new = changed_texts(change.old, change.new)
            return (old, (" -> ", "dim"), new)


def _model(path: KeyPath) -> str | None:
    """Return the model under whose name a change is shown."""
    return str(path[1]) if path[0] == "models" else None


def _names(tiers: Iterable[TierName], *, of_model: str | None = None) -> str:
    return ", ".join(
        f"{'' if tier.model == of_model else f'{tier.model}{QUALIFIER}'}{tier.tier}"
        f"{f' of version {tier.version}' if tier.version else ''}"
        for tier in tiers
    )


def _summary(changes: ConfigChanges) -> Iterator[tuple[Consequence, str]]:
    at_once = [change for change in changes.changes if change.consequence is Consequence.AT_ONCE]
    if at_once:
        yield Consequence.AT_ONCE, f"{len(at_once)} of {len(changes.changes)}"
    if changes.loaded:
        yield Consequence.LOAD, f"judged, loaded and warmed anew, without a build: {_names(changes.loaded)}"
    if changes.built:
        yield (
            Consequence.BUILD,
            f"built, judged and warmed first, but for what the store has: {_names(changes.built)}",
        )
    if changes.needing_restart:
        settings = ", ".join(path_text(change.path) for change in changes.needing_restart)
        yield Consequence.RESTART, f"taken on when the server is started again: {settings}"
