"""Rollouts as text for people."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from serveprune.config.duration import duration_text

Rollout = Mapping[str, Any]
"""As the admin API describes it."""

_PHASE_STYLES = {
    "waiting": "dim",
    "progressing": "green",
    "paused": "yellow",
    "promoted": "bold green",
    "aborted": "bold red",
}
_VERDICTS = {
    "ok": ("ok", "green"),
    "not_enough_samples": ("not enough samples", "yellow"),
    "breach": ("breach", "bold red"),
}


def rollout_table(rollouts: Iterable[Rollout]) -> Group:
    """Return all that is known of rollouts, one block each."""
    blocks: list[Any] = []
    for rollout in rollouts:
        title = Text.assemble((rollout["model"], "bold"), f": {rollout['canary']} takes over from {rollout['stable']}")
        rows = Table.grid(padding=(0, 2, 0, 0))
        rows.add_column(no_wrap=True, style="dim")
        rows.add_column(overflow="fold")
        for name, cell in _rows(rollout):
            rows.add_row(name, cell)
        blocks += [Text(), title, Padding(rows, (0, 0, 0, 2), expand=False)]
    return Group(*blocks[1:])


def rollout_line(rollout: Rollout) -> Text:
    """Return how a rollout stands, in one line."""
    return Text.assemble(
        (rollout["model"], "bold"),
        ": ",
        _phase(rollout),
        f", {rollout['canary_percent']} % to {rollout['canary']}; {rollout['reason']}",
    )


def _rows(rollout: Rollout) -> Iterator[tuple[str, Any]]:
    yield "phase", _phase(rollout)
    yield "weight", Text(f"{rollout['canary_percent']} % of the requests that name no tier")
    yield "steps", _steps(rollout)
    yield "reason", Text(rollout["reason"])
    if rollout["guards"]:
        yield "guards", _guards(rollout)
    if rollout["who"] is not None:
        yield "operator", Text(rollout["who"])
    if rollout["moved_on_by"] != "this server":
        yield "moved on by", Text(rollout["moved_on_by"])


def _phase(rollout: Rollout) -> Text:
    return Text(rollout["phase"], style=_PHASE_STYLES.get(rollout["phase"], ""))


def _steps(rollout: Rollout) -> Text:
    """Return all steps in a row; the one that is under way stands in brackets."""
    is_over = rollout["phase"] in ("promoted", "aborted")
    cells = []
    for number, step in enumerate(rollout["steps"]):
        words = _step(step)
        if is_over or number > rollout["step"]:
            cells.append(Text(words, style="dim" if is_over else ""))
        elif number < rollout["step"]:
            cells.append(Text(words, style="dim"))
        else:
            passed = (
                f", {duration_text(round(rollout['step_seconds']))} so far" if step.get("pause") is not None else ""
            )
            cells.append(Text(f"[{words}{passed}]", style="bold"))
    return Text(" > ").join(cells)


def _step(step: Mapping[str, Any]) -> str:
    if step.get("setWeight") is not None:
        return f"{step['setWeight']} %"
    seconds = step["pause"].get("duration")
    return "pause until resumed" if seconds is None else f"pause {duration_text(seconds)}"


def _guards(rollout: Rollout) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for column in range(3):
        table.add_column(no_wrap=column < 2, overflow="fold")
    for found in rollout["guards"]:
        words, style = _VERDICTS.get(found["verdict"], (found["verdict"], ""))
        table.add_row(Text(found["guard"]), Text(words, style=style), Text(found["figures"]))
    return table
