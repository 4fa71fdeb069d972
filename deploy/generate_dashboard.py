"""Generates deploy/grafana/dashboards/serveprune.json, or checks that what is there is up to date.

Usage: python deploy/generate_dashboard.py [--check]
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent / "grafana" / "dashboards" / "serveprune.json"
COLUMNS = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

JOB = 'job=~"$job"'
MODEL = f'{JOB}, model=~"$model"'
VERSION = f'{MODEL}, version=~"$version"'
TIER = f'{VERSION}, tier=~"$tier"'
FAULTS = 'code=~"INTERNAL|DATA_LOSS|UNAVAILABLE|DEADLINE_EXCEEDED"'
BY_TIER = "model, version, tier"
TIER_LEGEND = "{{model}} {{version}} {{tier}}"


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel; an instant one gives a table."""

    expression: str
    legend: str = ""
    is_instant: bool = False
    is_heat_map: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel; where it lies follows from its width and those before it in its row."""

    title: str
    description: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    defaults: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[Mapping[str, Any]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    transformations: Sequence[Mapping[str, Any]] = ()


def rate(metric: str, labels: str, by: str, *, more: str = "") -> str:
    """Return the query for how often something happens per second."""
    return f"sum by ({by}) (rate({metric}{{{labels}{more}}}[$__rate_interval]))"


def increase(metric: str, labels: str, by: str) -> str:
    """Return the query for how often something happened since the point before."""
    return f"sum by ({by}) (increase({metric}{{{labels}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "", *, labels: str = TIER) -> str:
    """Return the query for a quantile of a histogram."""
    groups = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, sum by ({groups}) (rate({metric}_bucket{{{labels}}}[$__rate_interval])))"


def lines(title: str, description: str, *queries: Query, **more: Any) -> Panel:
    """Return a panel of lines over time."""
    style = {"custom": {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never", "spanNulls": False}, "min": 0}
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"], "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return Panel(title, description, queries, defaults={**style, **more.pop("defaults", {})}, options=options, **more)


def stacked(title: str, description: str, *queries: Query, **more: Any) -> Panel:
    """Return a panel of areas that add up."""
    custom = {"lineWidth": 1, "fillOpacity": 40, "showPoints": "never", "stacking": {"mode": "normal", "group": "A"}}
    return lines(title, description, *queries, defaults={"custom": custom}, **more)


def bars(title: str, description: str, *queries: Query, **more: Any) -> Panel:
    """Return a panel of bars that add up, for what happens now and then."""
    custom = {"drawStyle": "bars", "fillOpacity": 70, "lineWidth": 0, "stacking": {"mode": "normal", "group": "A"}}
    return lines(title, description, *queries, defaults={"custom": custom, "decimals": 0}, **more)


def figure(
    title: str, description: str, expression: str, *, steps: Sequence[tuple[float | None, str]], **more: Any
) -> Panel:
    """Return a panel with one figure, whose colour follows the steps."""
    thresholds = {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in steps]}
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background",
        "graphMode": "area",
        "textMode": "value",
        "justifyMode": "center",
        "orientation": "auto",
    }
    defaults = {"thresholds": thresholds, "color": {"mode": "thresholds"}, **more.pop("defaults", {})}
    query = Query(expression)
    return Panel(title, description, (query,), "stat", width=3, height=4, defaults=defaults, options=options, **more)


def heat_map(title: str, description: str, metric: str, *, unit: str, labels: str = TIER, width: int = 8) -> Panel:
    """Return a panel that shows a histogram over time."""
    expression = f"sum by (le) (increase({metric}_bucket{{{labels}}}[$__rate_interval]))"
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "fill": "dark-orange"},
        "yAxis": {"axisPlacement": "left", "unit": unit},
        "tooltip": {"mode": "single", "yHistogram": True},
        "rowsFrame": {"layout": "auto"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "showValue": "never",
    }
    query = Query(expression, "{{le}}", is_heat_map=True)
    return Panel(title, description, (query,), "heatmap", unit=unit, options=options, width=width)


GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"
NO_YES = {"0": {"text": "no", "color": RED, "index": 0}, "1": {"text": "yes", "color": GREEN, "index": 1}}
YES_OR_NO = [{"type": "value", "options": NO_YES}]
QUALITY = "job_model_version_tier_metric:serveprune_tier_quality:max"
SPEEDUP = "job_model_version_tier:serveprune_tier_speedup_ratio:max"
SECONDS = "serveprune_request_duration_seconds"


def glance() -> list[Panel]:
    """Return what tells at a glance whether all is well."""
    requests = f"sum(rate(serveprune_requests_total{{{TIER}}}[$__rate_interval]))"
    failed = f"sum(rate(serveprune_requests_total{{{TIER}, {FAULTS}}}[$__rate_interval]))"
    neutral = [(None, BLUE)]
    return [
        figure("Requests", "Requests answered per second, whatever the answer.", requests, steps=neutral, unit="reqps"),
        figure(
            "Errors",
            "Share of the requests that failed by the server's fault. The alerts' objective: 0.1 %.",
            f"{failed} / ({requests} > 0)",
            steps=[(None, GREEN), (0.001, YELLOW), (0.01, RED)],
            unit="percentunit",
        ),
        figure(
            "p99",
            "99 % of the answers take at most this long. The alerts' objective: 250 ms.",
            quantile(0.99, SECONDS),
            steps=[(None, GREEN), (0.25, YELLOW), (1.0, RED)],
            unit="s",
        ),
        figure(
            "Quality served",
            "Quality of the tiers that serve, weighted by what they serve; dense has 1. By the metric chosen above.",
            f'avg(job_model_version_metric:serveprune_served_quality:mean_rate5m{{{VERSION}, metric=~"$metric"}})',
            steps=neutral,
            defaults={"decimals": 4},
        ),
        figure(
            "Tiers ready",
            "Share of the tiers that are loaded, warm and routed to.",
            f"avg(serveprune_tier_ready{{{TIER}}})",
            steps=[(None, RED), (0.5, YELLOW), (1.0, GREEN)],
            unit="percentunit",
        ),
        figure(
            "Processes",
            "Serving processes that listen, on all servers.",
            f"sum(serveprune_processes{{{JOB}}})",
            steps=[(None, RED), (1.0, BLUE)],
        ),
        figure(
            "Config is served",
            "Whether every server serves what its config file says.",
            f"min(serveprune_config_last_reload_successful{{{JOB}}})",
            steps=[(None, RED), (1.0, GREEN)],
            defaults={"mappings": YES_OR_NO},
        ),
        figure(
            "Rollouts under way",
            "Canaries that wait for their tier, progress or are paused.",
            f'sum(serveprune_rollout_phase{{{MODEL}, phase=~"waiting|progressing|paused"}}) or vector(0)',
            steps=[(None, GREEN), (1.0, BLUE)],
        ),
    ]


def table_query(expression: str) -> Query:
    """Return a query that gives one column of a table of tiers."""
    return Query(f"max by ({BY_TIER}) ({expression})", is_instant=True)


def trade() -> list[Panel]:
    """Return what tiers cost and gain."""
    columns: dict[str, tuple[str, str]] = {
        "Ready": (f"serveprune_tier_ready{{{TIER}}}", "short"),
        "Quality": (f'{QUALITY}{{{TIER}, metric=~"$metric"}}', "short"),
        "Speedup": (f"{SPEEDUP}{{{TIER}}}", "short"),
        "Size": (f"serveprune_tier_bytes{{{TIER}}}", "bytes"),
        "Batch deviation": (f"serveprune_tier_batch_deviation_ratio{{{TIER}}}", "percentunit"),
        "Requests/s": (f"job_model_version_tier:serveprune_served_tier:rate5m{{{TIER}}}", "reqps"),
        "Share": (f"job_model_version_tier:serveprune_served_tier:ratio_rate5m{{{TIER}}}", "percentunit"),
        "p50": (f"job_model_version_tier:{SECONDS}:p50_rate5m{{{TIER}}}", "s"),
        "p95": (f"job_model_version_tier:{SECONDS}:p95_rate5m{{{TIER}}}", "s"),
        "p99": (f"job_model_version_tier:{SECONDS}:p99_rate5m{{{TIER}}}", "s"),
        "Errors": (f"job_model_version_tier:serveprune_request_errors:ratio_rate5m{{{TIER}}}", "percentunit"),
    }
    values = {f"Value #{letter}": name for letter, name in zip("ABCDEFGHIJK", columns, strict=True)}
    merged = [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {
                "excludeByName": {"Time": True},
                "indexByName": {
                    name: index for index, name in enumerate(("Time", "model", "version", "tier", *values))
                },
                "renameByName": values,
            },
        },
    ]
    overrides: list[Mapping[str, Any]] = [column(name, unit=unit) for name, (_, unit) in columns.items()]
    overrides += [
        column("Ready", mappings=YES_OR_NO, **{"custom.cellOptions": {"type": "color-text"}}),
        column("Quality", decimals=4),
        column("Speedup", decimals=2),
        column("Share", min=0, max=1, **{"custom.cellOptions": {"type": "gauge", "mode": "basic"}}),
    ]
    chart_values = {"Value #A": "p95", "Value #B": "quality", "Value #C": "requests/s"}
    points = [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {
                "excludeByName": {"Time": True},
                "indexByName": {
                    name: index for index, name in enumerate(("Time", "model", "version", "tier", *chart_values))
                },
                "renameByName": chart_values,
            },
        },
        {"id": "partitionByValues", "options": {"fields": ["model", "version", "tier"], "keepFields": False}},
    ]
    chart_queries = tuple(table_query(columns[name][0]) for name in ("p95", "Quality", "Requests/s"))
    return [
        Panel(
            "Tiers",
            "What each tier cost and gained when it was measured, beside what it does now. Quality by the metric "
            "chosen above; dense is what the others are compared with.",
            tuple(table_query(expression) for expression, _ in columns.values()),
            "table",
            width=COLUMNS,
            height=9,
            overrides=overrides,
            options={"cellHeight": "sm", "showHeader": True, "sortBy": [{"displayName": "model", "desc": False}]},
            transformations=merged,
        ),
        Panel(
            "Quality against latency",
            "One point a tier: how long 95 % of its answers take at most now, and its quality. Up and left is better.",
            chart_queries,
            "xychart",
            width=8,
            height=9,
            defaults={"custom": {"show": "points", "pointSize": {"fixed": 10}, "axisPlacement": "auto"}},
            overrides=[
                column("p95", unit="s", displayName="p95", **{"custom.axisLabel": "p95"}),
                column("quality", **{"custom.axisLabel": "quality"}),
                column("requests/s", unit="reqps"),
            ],
            options={
                "mapping": "auto",
                "series": [
                    {
                        "x": {"matcher": {"id": "byName", "options": "p95"}},
                        "y": {"matcher": {"id": "byName", "options": "quality"}},
                    }
                ],
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
                "tooltip": {"mode": "single", "sort": "none"},
            },
            transformations=points,
        ),
        lines(
            "Quality served",
            "Quality that callers get on average: that of each tier, weighted by what it serves. By the metric chosen "
            "above.",
            Query(
                f'job_model_version_metric:serveprune_served_quality:mean_rate5m{{{VERSION}, metric=~"$metric"}}',
                "{{model}} {{version}} {{metric}}",
            ),
            defaults={"min": None, "decimals": 4},
            height=9,
        ),
        lines(
            "Compute saved",
            "How many times longer dense would compute for what is served now, by the speedups measured at build.",
            Query(
                f"job_model_version:serveprune_served_speedup:mean_rate5m{{{VERSION}}}",
                "{{model}} {{version}}",
            ),
            height=9,
        ),
    ]


def column(name: str, **properties: Any) -> dict[str, Any]:
    """Return the override of one field, by its name."""
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": key, "value": value} for key, value in properties.items()],
    }


def latency() -> list[Panel]:
    """Return how long callers wait."""
    return [
        lines(
            "Latency",
            "From a decoded request to its answer, over all that is chosen above.",
            *(Query(quantile(share, SECONDS), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)),
            unit="s",
        ),
        lines(
            "p95 by tier",
            "95 % of a tier's answers take at most this long.",
            Query(quantile(0.95, SECONDS, BY_TIER), TIER_LEGEND),
            unit="s",
        ),
        heat_map("Latency, all answers", "How many answers took how long.", SECONDS, unit="s"),
    ]


def stages() -> list[Panel]:
    """Return where the time goes."""
    stage = {
        "Queue": ("serveprune_request_queue_seconds", "95 % of the requests wait at most this long for an executor."),
        "Compute": ("serveprune_request_compute_seconds", "95 % of the requests are in a batch computed this fast."),
        "Preprocessing": (
            "serveprune_request_preprocessing_seconds",
            "95 % of the texts and images become tensors at least this fast.",
        ),
    }
    panels = [
        lines(f"{name}, p95", text, Query(quantile(0.95, metric, BY_TIER), TIER_LEGEND), unit="s")
        for name, (metric, text) in stage.items()
    ]
    rows = "sum by (model, version, tier) (rate(serveprune_batch_rows_{}{{{}}}[$__rate_interval]))"
    return [
        *panels,
        lines(
            "Rows per batch",
            "Mean size of the batches that are computed. Larger under load, one at rest.",
            Query(f"{rows.format('sum', TIER)} / ({rows.format('count', TIER)} > 0)", TIER_LEGEND),
        ),
        heat_map("Batch sizes", "How many batches had how many rows.", "serveprune_batch_rows", unit="short"),
        lines(
            "In flight",
            "Requests admitted and not yet answered.",
            Query(f"sum by (model, version) (serveprune_requests_in_flight{{{VERSION}}})", "{{model}} {{version}}"),
        ),
        lines(
            "Batch time, as timed at load",
            "What a batch of so many rows takes; forecasts go by this.",
            Query(
                f"max by ({BY_TIER}, rows) (serveprune_tier_batch_seconds{{{TIER}}})",
                f"{TIER_LEGEND}, {{{{rows}}}} rows",
            ),
            unit="s",
            width=12,
        ),
        lines(
            "Slower than timed",
            "How many times longer batches take than was timed at load. Above 1: something else takes the cores.",
            Query(f"max by ({BY_TIER}) (serveprune_tier_latency_correction_ratio{{{TIER}}})", TIER_LEGEND),
            width=12,
        ),
    ]


def tiers() -> list[Panel]:
    """Return which tier serves, and why."""
    return [
        stacked(
            "Asked for",
            "Requests by the tier they ask for, or the default tier, or the best one that might be chosen.",
            Query(rate("serveprune_requested_tier_total", TIER, BY_TIER), TIER_LEGEND),
            unit="reqps",
        ),
        stacked(
            "Served",
            "Requests by the tier they are routed to.",
            Query(rate("serveprune_served_tier_total", TIER, BY_TIER), TIER_LEGEND),
            unit="reqps",
        ),
        stacked(
            "Why",
            "Requests by why that tier serves them. building, refused and failed are stand-ins for the wanted one.",
            Query(rate("serveprune_served_tier_total", TIER, "reason"), "{{reason}}"),
            unit="reqps",
        ),
        lines(
            "Share by tier",
            "Which part of a model's requests each tier serves.",
            Query(f"job_model_version_tier:serveprune_served_tier:ratio_rate5m{{{TIER}}}", TIER_LEGEND),
            unit="percentunit",
            defaults={"max": 1},
        ),
        lines(
            "Adaptive: best tier now",
            "Best tier that an adaptive deployment serves now, as its place in the model's list; 0 is dense.",
            Query(f"max by (model, version) (serveprune_adaptive_ceiling_rank{{{VERSION}}})", "{{model}} {{version}}"),
            defaults={"decimals": 0},
        ),
        bars(
            "Adaptive: steps",
            "How often that changed: up to a better tier, down to a smaller one.",
            Query(
                increase("serveprune_adaptive_steps_total", VERSION, "model, version, direction"),
                "{{model}} {{version}} {{direction}}",
            ),
        ),
    ]


def failures() -> list[Panel]:
    """Return what goes wrong."""
    burn = "job_model_version:serveprune_{}:ratio_rate1h{{{}}} / scalar(serveprune:{}_budget:ratio)"
    return [
        stacked(
            "Answers by code",
            "Requests to a model by status code, without OK.",
            Query(rate("serveprune_requests_total", TIER, "code", more=', code!="OK"'), "{{code}}"),
            unit="reqps",
        ),
        stacked(
            "Refused before a model",
            "Requests refused before they were admitted: unknown names, malformed ones, full queues "
            "(RESOURCE_EXHAUSTED). They belong to no model.",
            Query(rate("serveprune_rejected_requests_total", JOB, "code"), "{{code}}"),
            unit="reqps",
        ),
        stacked(
            "Dropped before compute",
            "Requests, or parts of large ones, whose deadline had passed in the queue (expired) or would have during "
            "compute (hopeless).",
            Query(rate("serveprune_dropped_requests_total", TIER, "model, reason"), "{{model}} {{reason}}"),
            unit="reqps",
        ),
        lines(
            "Burn of the error budget",
            "1: errors like those of the last hour use a month's budget up in a month. Alerts begin at 14.4.",
            Query(burn.format("request_errors", VERSION, "error"), "{{model}} {{version}}"),
            width=12,
        ),
        lines(
            "Burn of the latency budget",
            "1: as many answers are slower than the objective as it allows. Alerts begin at 14.4.",
            Query(burn.format("slow_requests", VERSION, "latency"), "{{model}} {{version}}"),
            width=12,
        ),
    ]


def rollouts() -> list[Panel]:
    """Return how canaries and shadows do."""
    return [
        lines(
            "Canary weight",
            "Share of the requests that name no tier which goes to the canary.",
            Query(f"max by (model) (serveprune_rollout_canary_weight_ratio{{{MODEL}}})", "{{model}}"),
            unit="percentunit",
            defaults={"max": 1, "custom": {"lineInterpolation": "stepAfter", "fillOpacity": 20}},
        ),
        Panel(
            "Phase",
            "Which phase each rollout is in: waiting, progressing, paused, promoted or aborted.",
            (Query(f"max by (model, phase) (serveprune_rollout_phase{{{MODEL}}})", "{{model}} {{phase}}"),),
            "state-timeline",
            defaults={
                "mappings": [
                    {
                        "type": "value",
                        "options": {
                            "0": {"text": " ", "color": "transparent", "index": 0},
                            "1": {"text": "is in", "color": BLUE, "index": 1},
                        },
                    }
                ],
                "custom": {"fillOpacity": 80, "lineWidth": 0},
            },
            options={"mergeValues": True, "showValue": "never", "rowHeight": 0.8, "legend": {"showLegend": False}},
        ),
        lines(
            "Step",
            "Step of the rollout that is under way, counted from 0.",
            Query(f"max by (model) (serveprune_rollout_step{{{MODEL}}})", "{{model}}"),
            defaults={"decimals": 0, "custom": {"lineInterpolation": "stepAfter"}},
        ),
        bars(
            "What happened to rollouts",
            "Steps, pauses, promotions and aborts; audit.jsonl in the store says more.",
            Query(
                increase("serveprune_rollout_changes_total", MODEL, "model, kind"),
                "{{model}} {{kind}}",
            ),
            width=6,
        ),
        lines(
            "Live agreement",
            "How far live answers of a tier agree with those of the shadow tier to the same requests, on average.",
            Query(
                f"job_model_version_tier_shadow:serveprune_shadow_agreement:mean_rate5m{{{TIER}}}",
                f"{TIER_LEGEND} with {{{{shadow}}}}",
            ),
            defaults={"max": 1, "min": None, "decimals": 4},
            width=6,
        ),
        heat_map(
            "Live agreement, all samples",
            "How many of the samples agreed how far. 1 is the same answer.",
            "serveprune_shadow_agreement_ratio",
            unit="short",
            width=6,
        ),
        stacked(
            "Shadow samples",
            "Requests that were to be computed once more: compared, dropped because of the load, or failed.",
            Query(rate("serveprune_shadowed_requests_total", TIER, "model, outcome"), "{{model}} {{outcome}}"),
            unit="reqps",
            width=6,
        ),
    ]


def builds() -> list[Panel]:
    """Return how tiers come about and where they are kept."""
    seconds = f"serveprune_build_duration_seconds_{{}}{{{{{TIER}}}}}"
    return [
        bars(
            "Builds",
            "Builds by how they ended: built, cached, refused by their gate, failed.",
            Query(
                increase("serveprune_builds_total", TIER, "model, tier, outcome"),
                "{{model}} {{tier}} {{outcome}}",
            ),
        ),
        lines(
            "Progress of builds",
            "From 0 to 1; 0 when none runs.",
            Query(f"max by ({BY_TIER}) (serveprune_build_progress_ratio{{{TIER}}})", TIER_LEGEND),
            unit="percentunit",
            defaults={"max": 1},
        ),
        lines(
            "Duration of builds",
            "Mean of those since the server was started.",
            Query(
                f"sum by ({BY_TIER}) ({seconds.format('sum')}) / (sum by ({BY_TIER}) ({seconds.format('count')}) > 0)",
                TIER_LEGEND,
            ),
            unit="s",
        ),
        bars(
            "Store",
            "What happened in the artifact store: hit, miss, evicted, corrupt; of a shared one fetched, published, "
            "unreachable and more. Builds store by themselves.",
            Query(
                increase("serveprune_store_events_total", JOB, "event"),
                "{{event}}",
            ),
            width=12,
        ),
        lines(
            "Size of the store",
            "All artifacts on disk; store.max_bytes bounds it.",
            Query(f"max by (job, instance) (serveprune_store_bytes{{{JOB}}})", "{{instance}}"),
            unit="bytes",
            width=12,
        ),
    ]


def processes() -> list[Panel]:
    """Return what the servers take of their machines, and what they were told."""
    return [
        lines(
            "Memory",
            "Resident, of all processes of a server; what they share counts once.",
            Query(f"process_resident_memory_bytes{{{JOB}}}", "{{instance}}"),
            unit="bytes",
            width=6,
        ),
        lines(
            "CPU",
            "Cores in use, of all processes of a server, builds not among them.",
            Query(f"rate(process_cpu_seconds_total{{{JOB}}}[$__rate_interval])", "{{instance}}"),
            width=6,
        ),
        lines(
            "Open files",
            "File descriptors, of which each connection takes one, and how many there may be.",
            Query(f"process_open_fds{{{JOB}}}", "{{instance}}"),
            Query(f"process_max_fds{{{JOB}}}", "{{instance}}, limit"),
            width=6,
        ),
        lines(
            "Processes",
            "Serving processes that listen, and whether Prometheus reaches the server.",
            Query(f"serveprune_processes{{{JOB}}}", "{{instance}}"),
            Query(f"up{{{JOB}}}", "{{instance}}, reached"),
            defaults={"decimals": 0},
            width=6,
        ),
        bars(
            "Restarts",
            "Serving processes that ended unasked and were replaced, and starts of the whole server.",
            Query(
                increase("serveprune_process_restarts_total", JOB, "instance"),
                "{{instance}}, a process",
            ),
            Query(f"changes(process_start_time_seconds{{{JOB}}}[$__rate_interval])", "{{instance}}, the server"),
            width=6,
        ),
        lines(
            "Age of the config",
            "Time since the config file was last found to be good, that is since it last changed.",
            Query(
                f"time() - serveprune_config_last_reload_success_timestamp_seconds{{{JOB}}}",
                "{{instance}}",
            ),
            unit="s",
            width=6,
        ),
        bars(
            "Certificates and tokens",
            "Changes on disk, by whether the new one was taken or refused.",
            Query(
                increase("serveprune_security_reloads_total", JOB, "kind, outcome"),
                "{{kind}} {{outcome}}",
            ),
            width=6,
        ),
        bars(
            "Admin API",
            "Requests of operators, by status code; audit.jsonl says more. Empty where there is no admin API.",
            Query(increase("serveprune_admin_requests_total", JOB, "code"), "{{code}}"),
            width=6,
        ),
    ]


ROWS = {
    "At a glance": glance,
    "The trade": trade,
    "Latency": latency,
    "Queue and compute": stages,
    "Which tier serves, and why": tiers,
    "Errors and refusals": failures,
    "Rollouts and shadow": rollouts,
    "Builds and store": builds,
    "Processes": processes,
}


def laid_out(rows: Mapping[str, Sequence[Panel]]) -> Iterator[dict[str, Any]]:
    """Yield all panels with their places: from left to right, row by row."""
    number, y = 0, 0
    for title, panels in rows.items():
        number += 1
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
        yield {"id": number, "type": "row", "title": title, "gridPos": place, "collapsed": False, "panels": []}
        x, y, tallest = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            number += 1
            place = {"h": panel.height, "w": panel.width, "x": x, "y": y}
            yield {"id": number, "gridPos": place, **as_json(panel)}
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest


def as_json(panel: Panel) -> dict[str, Any]:
    """Return a panel as Grafana wants it, but for its place."""
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": [target(query, "ABCDEFGHIJKL"[index]) for index, query in enumerate(panel.queries)],
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                **{key: value for key, value in panel.defaults.items() if value is not None},
            },
            "overrides": list(panel.overrides),
        },
        "options": dict(panel.options),
        "transformations": list(panel.transformations),
    }


def target(query: Query, letter: str) -> dict[str, Any]:
    """Return a query as Grafana wants it."""
    form = "table" if query.is_instant else "heatmap" if query.is_heat_map else "time_series"
    return {
        "refId": letter,
        "datasource": SOURCE,
        "expr": query.expression,
        "legendFormat": query.legend or "__auto",
        "format": form,
        "instant": query.is_instant,
        "range": not query.is_instant,
        "editorMode": "code",
    }


def variables() -> list[dict[str, Any]]:
    """Return what an operator chooses at the top; each list is of what fits the ones before it."""
    chain = {
        "job": "label_values(serveprune_processes, job)",
        "model": f"label_values(serveprune_tier_ready{{{JOB}}}, model)",
        "version": f"label_values(serveprune_tier_ready{{{MODEL}}}, version)",
        "tier": f"label_values(serveprune_tier_ready{{{VERSION}}}, tier)",
        "metric": f'label_values(serveprune_tier_quality{{{VERSION}, metric!="sqnr_db"}}, metric)',
    }
    source = {
        "name": "datasource",
        "type": "datasource",
        "label": "Data source",
        "query": "prometheus",
        "refresh": 1,
        "current": {},
        "hide": 0,
    }
    return [source, *(variable(name, query) for name, query in chain.items())]


def variable(name: str, query: str) -> dict[str, Any]:
    """Return one list of label values, of which several or all may be chosen."""
    is_metric = name == "metric"
    # Agreement with dense is what dense has, too; accuracy and the like only where there are labels.
    every = "cosine|top1_agreement" if is_metric else ".*"
    return {
        "name": name,
        "type": "query",
        "label": "Quality by" if is_metric else name.capitalize(),
        "datasource": SOURCE,
        "query": {"query": query, "refId": "variable"},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": every,
        "current": {"text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }


def dashboard() -> dict[str, Any]:
    """Return the whole dashboard."""
    alerts = {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": RED,
        "expr": 'ALERTS{alertname=~"Serveprune.*", alertstate="firing", severity=~"critical|warning"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{model}} {{tier}} {{instance}}",
        "step": "60s",
    }
    return {
        "uid": "serveprune",
        "title": "serveprune",
        "description": "What compression tiers cost and gain, and how well they serve. See docs/monitoring.md.",
        "tags": ["serveprune"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "timepicker": {},
        "fiscalYearStartMonth": 0,
        "weekStart": "",
        "links": [],
        "annotations": {"list": [alerts]},
        "templating": {"list": variables()},
        "panels": list(laid_out({title: panels() for title, panels in ROWS.items()})),
    }


def main() -> None:
    """Write the dashboard, or compare it when asked to check."""
    parser = argparse.ArgumentParser(description="Generate the Grafana dashboard, or check that it is up to date.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when something would change")
    arguments = parser.parse_args()
    content = json.dumps(dashboard(), indent=2) + "\n"
    if not arguments.check:
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text(content)
    elif not FILE.exists() or FILE.read_text() != content:
        sys.exit(f"{FILE} is out of date; run: python deploy/generate_dashboard.py")


if __name__ == "__main__":
    main()
