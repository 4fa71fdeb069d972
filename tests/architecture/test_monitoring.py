"""What deploy/ holds for Prometheus and Grafana says nothing that the code does not know."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from e2e.monitoring import (
    DASHBOARD,
    PROMETHEUS,
    ROOT,
    RULE_FILES,
    alerts,
    everything,
    panel_queries,
    panels,
    prometheus_tool,
    rules,
    substituted,
)

from serveprune.observability.metrics import METRICS, Metrics

TARGET = {"job", "instance"}
"""What Prometheus puts beside the labels of a server."""

# Those that every Python server has, and what Prometheus says of its targets and alerts.
OTHERS = {"up": set[str](), "ALERTS": {"alertname", "alertstate", "severity", "model", "tier"}}


def known_series() -> dict[str, set[str]]:
    """Return the labels of every series that there can be, by its name."""
    known = {name: labels | TARGET for name, labels in OTHERS.items()}
    for family in Metrics().registry.collect():
        if family.name.startswith(("process_", "python_")):
            known |= {sample.name: {*sample.labels, *TARGET} for sample in family.samples}
    for metric in METRICS:
        labels = {*metric.labels, *TARGET}
        if metric.kind == "histogram":
            known |= {f"{metric.name}_sum": labels, f"{metric.name}_count": labels}
            known[f"{metric.name}_bucket"] = labels | {"le"}
        else:
            known[metric.name] = labels
    for rule in rules():
        if "record" in rule:
            known[rule["record"]] = levels(rule["record"])
    return known


def levels(record: str) -> set[str]:
    """Return the labels that the name of a recorded series says are left."""
    level = record.partition(":")[0]
    return set() if level == "serveprune" else set(level.split("_"))


def queries() -> Iterator[tuple[str, str]]:
    yield from ((title, substituted(query, everything())) for title, query in panel_queries())
    yield from ((rule.get("record") or rule["alert"], rule["expr"]) for rule in rules())
    document = json.loads(DASHBOARD.read_text())
    yield from ((each["name"], each["expr"]) for each in document["annotations"]["list"])
    for each in document["templating"]["list"]:
        if each["type"] == "query":
            selector, label = each["definition"].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
            yield each["name"], f"count by ({label}) ({substituted(selector, everything())})"


def nodes(query: str) -> list[Any]:
    found: list[Any] = []
    promql_parser.walk(promql_parser.parse(query), pre_visit=found.append)
    return found


def selectors(query: str) -> Iterator[Any]:
    for node in nodes(query):
        if isinstance(node, promql_parser.MatrixSelector):
            yield node.vector_selector
        elif isinstance(node, promql_parser.VectorSelector):
            yield node


def test_queries_ask_for_series_and_labels_that_there_are() -> None:
    known = known_series()
    wrong = []
    asked = set()
    for where, query in queries():
        for selector in selectors(query):
            asked.add(selector.name)
            if selector.name not in known:
                wrong.append(f"{where}: no series {selector.name}")
                continue
            labels = {matcher.name for matcher in selector.matchers.matchers}
            wrong += [f"{where}: {selector.name} has no {label}" for label in labels - known[selector.name]]
    assert wrong == []
    # The reverse: what is measured is shown.
    shown = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in asked}
    assert {metric.name for metric in METRICS} - shown == set()


def test_queries_group_by_labels_that_there_are() -> None:
    known = known_series()
    wrong = []
    for where, query in queries():
        for node in nodes(query):
            if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
                there = set.union(*(known[selector.name] for selector in selectors(node.expr.prettify())))
                wrong += [f"{where}: none has {label}" for label in set(node.modifier.labels) - there]
    assert wrong == []


def test_legends_and_texts_name_labels_that_there_are() -> None:
    labels = set.union(*known_series().values())
    texts = [target["legendFormat"] for panel in panels() for target in panel.get("targets", ())]
    named = set(itertools.chain.from_iterable(re.findall(r"\{\{(\w+)\}\}", text) for text in texts))
    for rule in alerts().values():
        named |= set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
    assert len(named) > 5
    assert named - labels == set()


def test_promtool_finds_nothing_wrong() -> None:
    promtool = prometheus_tool("promtool")
    for command in (
        ["check", "config", str(PROMETHEUS / "prometheus.yml")],
        ["check", "rules", *map(str, RULE_FILES)],
    ):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr


def test_rules_do_what_their_tests_say() -> None:
    tests = sorted(map(str, (PROMETHEUS / "tests").glob("*.yml")))
    done = subprocess.run(
        [prometheus_tool("promtool"), "test", "rules", *tests], capture_output=True, text=True, timeout=300
    )
    assert tests
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_to_fire_and_not_to_fire_and_every_record_is_worked_out() -> None:
    fires: set[str] = set()
    is_silent: set[str] = set()
    recorded: set[str] = set()
    for file in (PROMETHEUS / "tests").glob("*.yml"):
        for test in yaml.safe_load(file.read_text())["tests"]:
            for case in test["promql_expr_test"]:
                named = re.findall(r'alertname="(\w+)"', case["expr"])
                (fires if case["exp_samples"] else is_silent).update(named)
                recorded |= {selector.name for selector in selectors(case["expr"])}
    assert fires == is_silent == set(alerts())
    assert {rule["record"] for rule in rules() if "record" in rule} - recorded == set()


@pytest.mark.parametrize("name", alerts())
def test_alert_says_what_to_do_and_where_to_read_on(name: str) -> None:
    rule = alerts()[name]
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    # As Git forges make them.
    assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_objectives_change_as_the_page_says(tmp_path: Path) -> None:
    (commands,) = re.findall(
        r"^```\n(sed .+?)^```", (ROOT / "docs/monitoring.md").read_text(), re.MULTILINE | re.DOTALL
    )
    rule_folder = tmp_path / "deploy" / "prometheus" / "rules"
    shutil.copytree(PROMETHEUS / "rules", rule_folder)
    tools = {**os.environ, "PATH": f"{os.environ['PATH']}:{Path(prometheus_tool('promtool')).parent}"}
    done = subprocess.run(["sh", "-ec", commands], cwd=tmp_path, env=tools, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    changed, before = (rules_of / "recording.yml" for rules_of in (rule_folder, PROMETHEUS / "rules"))
    assert changed.read_text().count("vector(0.005)") == before.read_text().count("vector(0.001)") == 1
    assert changed.read_text().count('le="0.1"') == before.read_text().count('le="0.25"') > 0


def test_names_of_alerts_and_records_are_used_once() -> None:
    names = [rule.get("record") or rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))


def test_latency_objective_is_one_of_the_buckets() -> None:
    (duration,) = (metric for metric in METRICS if metric.name == "serveprune_request_duration_seconds")
    bounds = {bound for rule in rules() for bound in re.findall(r'le="([\d.]+)"', rule["expr"])}
    assert len(bounds) == 1
    assert bounds <= {str(bucket) for bucket in duration.buckets}


def test_dashboard_is_as_its_script_makes_it() -> None:
    script = [sys.executable, str(ROOT / "deploy" / "generate_dashboard.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_panels_do_not_overlap_and_leave_no_hole() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for cell in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        ):
            assert cell not in taken, f"{panel['title']} lies over {taken[cell]}"
            taken[cell] = panel["title"]
    height = 1 + max(y for _, y in taken)
    assert len(taken) == 24 * height


def test_panels_have_a_description_a_unit_and_a_source_that_can_be_chosen() -> None:
    shown = [panel for panel in panels() if panel["type"] != "row"]
    for panel in shown:
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"], panel["title"]
    of_the_core = {"stat", "table", "timeseries", "xychart", "heatmap", "state-timeline"}
    assert {panel["type"] for panel in shown} <= of_the_core
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    assert json.loads(DASHBOARD.read_text())["schemaVersion"] >= 39


def test_provisioned_files_are_where_they_are_said_to_be() -> None:
    provisioning = DASHBOARD.parents[1] / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "serveprune.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "serveprune.yaml").read_text())["providers"]
    assert source["type"] == "prometheus"
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    interval = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
