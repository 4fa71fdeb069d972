"""`metrics.yaml` of a TorchServe that shows serveprune's series as far as it can carry them.

What is written here and what the handler reports have to agree: TorchServe drops what is not declared, silently.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from serveprune.handlers.torchserve.installation import require_package
from serveprune.observability.metrics import (
    ADMIN_REQUESTS,
    BATCH_ROWS,
    BUILD_SECONDS,
    CONFIG_RELOAD_SECONDS,
    CONFIG_RELOAD_SUCCESSFUL,
    METRICS,
    PROCESS_RESTARTS,
    PROCESSES,
    ROLLOUT_CHANGES,
    ROLLOUT_PHASE,
    ROLLOUT_STEP,
    ROLLOUT_WEIGHT,
    SECURITY_RELOADS,
    SHADOW_AGREEMENT,
    Metric,
)

WORKER = "WorkerName"
"""Dimension of gauges, which tells the workers apart; counters and histograms of several workers add up."""

_OTHER_BUCKETS = "TorchServe's histograms have buckets from 0.005 to 10 only"
_NOT_HERE = "happens in serveprune's own server only"

NOT_CARRIED: Mapping[Metric, str] = MappingProxyType(
    {
        BATCH_ROWS: _OTHER_BUCKETS,
        BUILD_SECONDS: _OTHER_BUCKETS,
        SHADOW_AGREEMENT: _OTHER_BUCKETS,
        SECURITY_RELOADS: _NOT_HERE,
        CONFIG_RELOAD_SUCCESSFUL: _NOT_HERE,
        CONFIG_RELOAD_SECONDS: _NOT_HERE,
        ROLLOUT_WEIGHT: _NOT_HERE,
        ROLLOUT_STEP: _NOT_HERE,
        ROLLOUT_PHASE: _NOT_HERE,
        ROLLOUT_CHANGES: _NOT_HERE,
        ADMIN_REQUESTS: _NOT_HERE,
        PROCESSES: _NOT_HERE,
        PROCESS_RESTARTS: _NOT_HERE,
    }
)
"""What TorchServe cannot show, and why."""

CARRIED: tuple[Metric, ...] = tuple(metric for metric in METRICS if metric not in NOT_CARRIED)
"""What it can, in the order of the table."""

_UNIT_OF_ENDING = {"seconds": "seconds", "bytes": "bytes", "ratio": "ratio"}
_SECTION = "model_metrics"
_INTRODUCTION = """\
# Written by `serveprune torchserve metrics`: TorchServe's own metrics, and serveprune's as far as it can carry them.
# TorchServe reads it with `metrics_config=THIS_FILE` and `metrics_mode=prometheus` in its config.properties.
# Its histograms have buckets of their own: counts are exact at bounds that ours have too (not 0.075, 0.75, 7.5).
# What is taken out here is not reported.
# Not carried:
"""


def dimensions(metric: Metric) -> list[str]:
    """Return the names of a metric's dimensions, in the order of the values that are reported."""
    return [*metric.labels, *([WORKER] if metric.kind == "gauge" else [])]


def unit(metric: Metric) -> str:
    """Return the unit that TorchServe is told."""
    ending = metric.name.removesuffix("_total").rpartition("_")[2]
    return _UNIT_OF_ENDING.get(ending, "count")


def metrics_file() -> str:
    """Return the content of `metrics.yaml`.

    Raises:
        MissingExtra: TorchServe, whose own metrics it holds too, is not installed.
    """
    own = require_package("torchserve") / "ts" / "configs" / "metrics.yaml"
    return with_carried_metrics(own.read_text(encoding="utf-8"))


def with_carried_metrics(own: str) -> str:
    """Return a `metrics.yaml` with our metrics added to those it has."""
    document: dict[str, Any] = yaml.safe_load(own)
    section: dict[str, list[dict[str, Any]]] = document.setdefault(_SECTION, {})
    for metric in CARRIED:
        declared = {"name": metric.name, "unit": unit(metric), "dimensions": dimensions(metric)}
        section.setdefault(metric.kind, []).append(declared)
    reasons = "".join(f"#   {metric.name}: {reason}\n" for metric, reason in NOT_CARRIED.items())
    return _INTRODUCTION + reasons + yaml.safe_dump(document, sort_keys=False, width=120)


def write_metrics_file(path: Path) -> None:
    """Write `metrics.yaml`.

    Raises:
        MissingExtra: See `metrics_file`.
    """
    path.write_text(metrics_file(), encoding="utf-8")
