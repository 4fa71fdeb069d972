"""The series that the page of the server shows, as one document: counts, of which a reader takes differences."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family

from serveprune.observability import metrics as series
from serveprune.observability.shared_values import MergedCollector

_COUNTED = {series.REQUESTS.name: ("codes", "code"), series.SERVED_TIER.name: ("reasons", "reason")}
"""Counter -> under which word its values go, by which label."""
_TIMED = series.REQUEST_SECONDS.name
_SHOWN = frozenset(name.removesuffix("_total") for name in (*_COUNTED, _TIMED))


class LiveSeries:
    """Reads them, of one process or the sum of several. Thread-safe."""

    def __init__(self, registry: CollectorRegistry, *, folder: Path | None) -> None:
        """Remember where they are.

        Args:
            registry: Of this process.
            folder: Where several processes keep theirs; ``None`` where there is one.
        """
        self._registry = registry
        self._merged = MergedCollector(folder, gauges={}) if folder is not None else None

    def document(self) -> dict[str, Any]:
        """Return what was counted so far, ready for JSON.

        ``seconds`` is a monotonic clock that all processes share; ``bounds`` are upper bounds in seconds, and the
        last bucket beside them has none. Buckets count what is at most their bound.
        """
        tiers: dict[tuple[str, str, str], dict[str, Any]] = {}
        seconds = time.monotonic()
        for family in self._families():
            for sample in family.samples:
                labels = sample.labels
                key = (labels["model"], labels["version"], labels["tier"])
                tier = tiers.get(key)
                if tier is None:
                    tiers[key] = tier = _empty(key)
                if sample.name in _COUNTED:
                    word, label = _COUNTED[sample.name]
                    if sample.value:
                        tier[word][labels[label]] = sample.value
                    continue
                if sample.name == f"{_TIMED}_bucket":
                    tier["buckets"].append((float(labels["le"]), sample.value))
        for tier in tiers.values():
            tier["buckets"] = [count for _, count in sorted(tier["buckets"])]
        return {"seconds": seconds, "bounds": list(series.REQUEST_SECONDS.buckets), "tiers": list(tiers.values())}

    def _families(self) -> Iterable[Family]:
        if self._merged is not None:
            return [family for family in self._merged.collect() if family.name in _SHOWN]
        return self._registry.restricted_registry([*_COUNTED, f"{_TIMED}_bucket"]).collect()


def _empty(key: tuple[str, str, str]) -> dict[str, Any]:
    model, version, tier = key
    return {"model": model, "version": version, "tier": tier, "codes": {}, "reasons": {}, "buckets": []}
