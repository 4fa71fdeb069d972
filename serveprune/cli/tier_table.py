"""Tiers as a table: what each costs in quality and gains in speed and size."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

_STATE_STYLES = {"ready": "green", "building": "yellow", "waiting": "dim", "refused": "red", "failed": "bold red"}
_MEBIBYTE = 2**20


def tier_table(models: Iterable[Mapping[str, Any]]) -> Table:
    """Return the table of all tiers of these models, each as `ControlPlane.tiers` describes it."""
    table = Table(title="tiers, measured on this machine against dense", title_justify="left")
    for column, justify in (
        ("model", "left"),
        ("tier", "left"),
        ("state", "left"),
        ("quality", "left"),
        ("latency", "right"),
        ("speedup", "right"),
        ("size", "right"),
    ):
        table.add_column(column, justify=justify, no_wrap=column != "quality")  # type: ignore[arg-type]
    for model in models:
        for tier in model["tiers"]:
            table.add_row(model["name"], *tier_row(tier, model["tiers"]))
        table.add_section()
    return table


def tier_row(tier: Mapping[str, Any], siblings: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the cells of one tier; dense takes its latency and its own metrics from a tier measured with it."""
    state = tier["state"]
    style = _STATE_STYLES.get(state, "")
    if tier["progress"] and state == "building":
        state = f"building {tier['progress']['fraction']:4.0%} {tier['progress']['stage']}"
    size = f"{tier['bytes'] / _MEBIBYTE:.1f} MiB" if tier["bytes"] is not None else ""
    measured = tier if "metric" in tier else next((other for other in siblings if "metric" in other), None)
    cells = (tier["tier"], f"[{style}]{state}[/]" if style else state)
    if measured is None:
        return (*cells, *_reasons(tier, ""), "", "", size)
    batch = measured["latency_batch_size"]
    if tier is measured:
        quality = ", ".join(_quality_cells(tier))
        latency, speedup = f"{tier['latency_ms']['tier']:.2f} ms / {batch}", f"{tier['speedup']:.2f}x"
    elif tier["tier"] == "dense":
        quality = ", ".join(f"{name} {value:.4f}" for name, value in measured["dense_quality"].items()) or "reference"
        latency, speedup = f"{measured['latency_ms']['dense']:.2f} ms / {batch}", "1.00x"
    else:
        quality = latency = speedup = ""
    return (*cells, *_reasons(tier, quality), latency, speedup, size)


def _quality_cells(tier: Mapping[str, Any]) -> list[str]:
    headline = tier["metric"]
    others = [name for name in tier["dense_quality"] if name != headline]
    return [f"{name} {tier['quality'][name]:.4f}" for name in (headline, *others)]


def _reasons(tier: Mapping[str, Any], quality: str) -> tuple[str]:
    return ("\n".join([quality, *tier["reasons"]]).strip(),)
