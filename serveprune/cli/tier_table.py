"""Tiers as a table: what each costs in quality and gains in speed and size."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_STATE_STYLES = {"ready": "green", "building": "yellow", "waiting": "dim", "refused": "red", "failed": "bold red"}
_MEBIBYTE = 2**20
_PIPE_COLUMNS = 160


def table_console(*, stderr: bool = False) -> Console:
    """Return a console for tables: as wide as the terminal, or wide enough for whole cells where there is none."""
    console = Console(stderr=stderr)
    # Rich takes 80 columns without a terminal, and would break cells that somebody wants to grep for.
    return console if console.is_terminal else Console(stderr=stderr, width=_PIPE_COLUMNS)


def tier_table(models: Iterable[Mapping[str, Any]]) -> Table:
    """Return the table of all tiers of these models, each as `ControlPlane.tiers` describes it."""
    models = list(models)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=_caption(models), caption_justify="left")
    for column, justify in (
        ("model", "left"),
        ("tier", "left"),
        ("state", "left"),
        ("backend", "left"),
        ("quality", "left"),
        ("latency", "right"),
        ("speedup", "right"),
        ("size", "right"),
    ):
        table.add_column(column, justify=justify, no_wrap=column != "quality", overflow="fold")  # type: ignore[arg-type]
    names = shown_names(models)
    for model in models:
        for tier in model["tiers"]:
            table.add_row(names[model["name"], model["version"]], *tier_row(tier, model["tiers"]))
        table.add_section()
    return table


def shown_names(models: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """Return what models are called, by name and version: by their names, and versions where there are several."""
    keys = [(model["name"], model["version"]) for model in models]
    times = Counter(name for name, _ in keys)
    return {(name, version): name if times[name] == 1 else f"{name} {version}" for name, version in keys}


def _caption(models: Iterable[Mapping[str, Any]]) -> str:
    measured = [tier for model in models for tier in model["tiers"] if "metric" in tier]
    if not measured:
        return ""
    batches = ", ".join(str(size) for size in sorted({tier["latency_batch_size"] for tier in measured}))
    here = "on this machine" if all(tier["built_here"] for tier in measured) else "where the artifact was built"
    return f"quality against dense on held-out inputs; latency of a batch of {batches}, measured {here}"


def tier_row(tier: Mapping[str, Any], siblings: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the cells of one tier; dense takes its latency and its own metrics from a tier measured with it."""
    state = tier["state"]
    style = _STATE_STYLES.get(state, "")
    if tier["progress"] and state == "building":
        state = f"building {tier['progress']['fraction']:4.0%} {tier['progress']['stage']}"
    size = f"{tier['bytes'] / _MEBIBYTE:.1f} MiB" if tier["bytes"] is not None else ""
    measured = tier if "metric" in tier else next((other for other in siblings if "metric" in other), None)
    # A server of an earlier version has one backend and does not say so.
    cells = (tier["tier"], f"[{style}]{state}[/]" if style else state, _backend_cell(tier))
    if measured is None:
        return (*cells, *_reasons(tier, ""), "", "", size)
    if tier is measured:
        quality = ", ".join(_quality_cells(tier))
        latency, speedup = f"{tier['latency_ms']['tier']:.2f} ms", f"{tier['speedup']:.2f}x"
    elif tier["tier"] == "dense":
        quality = ", ".join(f"{name} {value:.4f}" for name, value in measured["dense_quality"].items()) or "reference"
        latency, speedup = f"{measured['latency_ms']['dense']:.2f} ms", "1.00x"
    else:
        quality = latency = speedup = ""
    return (*cells, *_reasons(tier, quality), latency, speedup, size)


def _backend_cell(tier: Mapping[str, Any]) -> str:
    """Return what runs the tier, and how much faster than dense the others were."""
    name = tier.get("backend") or ""
    others = [
        f"{other} {figures['speedup']:.2f}x" if "speedup" in figures else f"{other} failed"
        for other, figures in tier.get("backends", {}).items()
        if other != name
    ]
    return f"{name} ({', '.join(others)})" if others else name


def _quality_cells(tier: Mapping[str, Any]) -> list[str]:
    headline = tier["metric"]
    others = [name for name in tier["dense_quality"] if name != headline]
    return [f"{name} {tier['quality'][name]:.4f}" for name in (headline, *others)]


def _reasons(tier: Mapping[str, Any], quality: str) -> tuple[str]:
    # Reasons are not markup: `serveprune[compress]` must not lose its brackets.
    return (escape("\n".join([quality, *tier["reasons"]]).strip()),)
