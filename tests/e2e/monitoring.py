"""What deploy/ holds for Prometheus and Grafana, and a Prometheus of one's own to try it with."""

import json
import math
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import yaml

from e2e.server_process import wait_until

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULE_FILES = tuple(sorted((PROMETHEUS / "rules").glob("*.yml")))
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "serveprune.json"


def prometheus_tool(name: str) -> str:
    """Return where ``prometheus`` or ``promtool`` is; a test that needs it is skipped where it is not to be had."""
    found = shutil.which(name) or shutil.which(name, path=str(ROOT / ".tools" / "usr" / "bin"))
    if found is None:
        pytest.skip(f"{name} is missing; `make test` unpacks Debian's package prometheus, or install it")
    return found


def rules() -> list[dict[str, Any]]:
    """Return all recording and alerting rules, in the order in which they are evaluated."""
    groups = (group for file in RULE_FILES for group in yaml.safe_load(file.read_text())["groups"])
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels, rows among them."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def panel_queries() -> Iterator[tuple[str, str]]:
    """Yield the title of the panel and the query, of all."""
    for panel in panels():
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def substituted(query: str, chosen: Mapping[str, str]) -> str:
    """Return a query as Grafana sends it."""
    for name, value in chosen.items():
        query = query.replace(f"${name}", value)
    assert "$" not in query, query
    return query


def everything() -> dict[str, str]:
    """Return what Grafana puts in the place of variables when nothing is chosen, at a scrape interval of a second."""
    variables = json.loads(DASHBOARD.read_text())["templating"]["list"]
    chosen = {each["name"]: each["allValue"] for each in variables if each["type"] == "query"}
    return {**chosen, "__rate_interval": "10s", "__range": "5m"}


@dataclass(frozen=True, slots=True)
class Sample:
    labels: Mapping[str, str]
    value: float


class Prometheus:
    """A real one on loopback, with the project's configuration, but for its target and its intervals."""

    def __init__(self, folder: Path, *, target: str) -> None:
        self._log_file = folder / "prometheus.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        shutil.copytree(PROMETHEUS / "rules", folder / "rules")
        self._http = httpx.Client(base_url=f"http://{address}", trust_env=False, timeout=60)
        command = [prometheus_tool("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
        with self._log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, f"--web.listen-address={address}"], stdout=log, stderr=subprocess.STDOUT, cwd=folder
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait_ready(self) -> Self:
        def is_ready() -> bool:
            assert self._process.poll() is None, self._log_file.read_text()
            try:
                return self._http.get("/-/ready").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(is_ready, what="Prometheus is ready")
        return self

    def get(self, path: str, **parameters: str) -> Any:
        answer = self._http.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def query(self, expression: str) -> list[Sample]:
        """Return what a query gives now, without what is not a number."""
        data = self.get("query", query=expression)
        found = [data["result"]] if data["resultType"] == "scalar" else [each["value"] for each in data["result"]]
        labels = [{}] if data["resultType"] == "scalar" else [each["metric"] for each in data["result"]]
        samples = [Sample(each, float(value)) for each, (_, value) in zip(labels, found, strict=True)]
        return [sample for sample in samples if not math.isnan(sample.value)]

    def alerts(self) -> dict[str, str]:
        """Return the state of the alerts that are pending or firing, by name."""
        return {each["labels"]["alertname"]: each["state"] for each in self.get("alerts")["alerts"]}
