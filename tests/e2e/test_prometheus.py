"""Every query that deploy/ holds, asked of a real Prometheus that scrapes a real server under load."""

import itertools
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
import promql_parser
import pytest
from contract.grpc.messages import of_arrays

from e2e.deployment import FASHION, fashion_images, write_fashion
from e2e.monitoring import Prometheus, alerts, everything, panel_queries, prometheus_tool, rules, substituted
from e2e.server_process import PATIENCE_SECONDS, ServerProcess, wait_until

TOKEN = "an-operators-own-token-01"
ADMIN = {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "tokens": {"environment": "SERVEPRUNE_ADMIN_TOKEN"}}
CANARY = {
    "tier": "int8",
    "steps": [{"setWeight": 30}, {"pause": {}}],
    "guards": {"max_error_ratio": 0.5, "min_samples": 20, "window": "5m"},
}

# What nobody has done yet is there all the same, at zero: its first rise would be missed otherwise.
NOT_YET = {
    'serveprune_shadowed_requests_total{outcome="failed"}',
    'serveprune_rollout_changes_total{kind="resumed"}',
    'serveprune_admin_requests_total{operation="rollout.promote", code="INTERNAL"}',
    'serveprune_builds_total{outcome="failed"}',
    'serveprune_dropped_requests_total{reason="hopeless"}',
}


class Load:
    """Clients that ask for all tiers in all ways, and one that asks for what there is not, until they are stopped."""

    def __init__(self, server: ServerProcess) -> None:
        image = fashion_images(server.folder, 1)
        png = (server.folder / "boot.png").read_bytes()
        headers = {"Content-Type": "image/png"}
        paths = [
            f"/v2/models/{name}/infer" for name in ("fashion@dense", "fashion@int8", "clothes@dense", "clothes@int8")
        ]
        names = ("fashion", "fashion", "fashion", "clothes", "fashion@int8", "clothes@int8")
        self._asks: list[Callable[[], object]] = [
            *(partial(server.stub.ModelInfer, of_arrays(name, image=image)) for name in names),
            *(partial(server.http.post, path, content=png, headers=headers) for path in paths),
            partial(server.http.post, "/v2/models/nobody/infer", content=b'{"inputs":[]}'),
            partial(server.http.post, "/v2/models/fashion/infer", content=b'{"inputs":[]}'),
            partial(operator, server, "GET", "rollouts"),
        ]
        self._stopped = threading.Event()
        self._failures: list[Exception] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(2)]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        assert self._failures == []

    def _ask(self) -> None:
        for ask in itertools.cycle(self._asks):
            # Not as much as can be: Prometheus and the rest of the suite want to get on.
            if self._stopped.wait(0.02):
                return
            try:
                ask()
            except Exception as failure:
                self._failures.append(failure)
                return


def operator(server: ServerProcess, method: str, path: str, **options: Any) -> httpx.Response:
    return httpx.request(
        method,
        f"http://{server.endpoints['admin_http']}/admin/{path}",
        headers={"Authorization": f"Bearer {TOKEN}"},
        trust_env=False,
        timeout=PATIENCE_SECONDS,
        **options,
    )


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, Prometheus]]:
    """A server that builds its tiers, with a canary, a shadow and an adaptive deployment; and its Prometheus."""
    prometheus_tool("prometheus")
    file = write_fashion(
        tmp_path_factory.mktemp("watched"),
        models={"fashion": FASHION, "clothes": FASHION},
        deployments={
            "fashion": {"stable": "dense", "canary": CANARY, "shadow": {"tier": "dense", "sample_ratio": 0.5}},
            "clothes": {"policy": "adaptive", "target_latency_ms": 10_000},
        },
        server={"admin": ADMIN},
    )
    with ServerProcess(file, environment={"SERVEPRUNE_ADMIN_TOKEN": TOKEN}) as server:
        server.wait_open().wait_ready("fashion", "clothes")
        folder = tmp_path_factory.mktemp("prometheus")
        with Prometheus(folder, target=server.endpoints["metrics"]) as prometheus, Load(server):
            yield server, prometheus.wait_ready()


@pytest.mark.slow
def test_every_query_of_dashboard_and_rules_returns_data_and_no_alert_fires(
    watched: tuple[ServerProcess, Prometheus],
) -> None:
    _, prometheus = watched
    chosen = {**everything(), "model": "fashion", "tier": "int8"}
    missing = {
        *NOT_YET,
        *(substituted(query, everything()) for _, query in panel_queries()),
        *(rule["expr"] for rule in rules() if "record" in rule),
        *(rule["record"] for rule in rules() if "record" in rule),
        *(selector for rule in alerts().values() for selector in selectors(rule["expr"])),
    }
    assert len(missing) > 100

    def all_return_data() -> bool:
        missing.difference_update([query for query in missing if prometheus.query(query)])
        return not missing

    try:
        wait_until(all_return_data, what="all queries return data", seconds=90)
    except AssertionError:
        pytest.fail("these queries return nothing:\n" + "\n".join(sorted(missing)))
    # One model and one tier, as an operator chooses them; of the rollout's and the adaptive's panels one has neither.
    of_tiers = [query for _, query in panel_queries() if '"$tier"' in query]
    empty = [query for query in of_tiers if not prometheus.query(substituted(query, chosen))]
    assert empty == []
    evaluated = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"]: rule.get("lastError", "") for rule in evaluated if rule["health"] != "ok"} == {}
    assert {rule["name"] for rule in evaluated if rule["type"] == "alerting"} == set(alerts())
    assert {name for name, state in prometheus.alerts().items() if state == "firing"} == set()


def selectors(query: str) -> Iterator[str]:
    """Yield the series that a query reads, as queries for what they are now."""
    found: list[Any] = []
    promql_parser.walk(promql_parser.parse(query), pre_visit=found.append)
    for node in found:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            yield node.prettify().partition(" offset ")[0]


@pytest.mark.slow
def test_quality_and_speedup_served_are_those_of_the_tiers_that_serve(
    watched: tuple[ServerProcess, Prometheus],
) -> None:
    server, prometheus = watched
    quality = server.tiers("fashion")["int8"]["quality"]["top1_agreement"]
    served = 'job_model_version_metric:serveprune_served_quality:mean_rate5m{model="fashion", metric="top1_agreement"}'
    wait_until(lambda: bool(prometheus.query(served)), what="it is recorded")
    (sample,) = prometheus.query(served)
    assert quality <= sample.value <= 1
    (best,) = prometheus.query(
        'job_model_version_tier:serveprune_tier_speedup_ratio:max{model="fashion", tier="dense"}'
    )
    assert best.value == 1


@pytest.mark.slow
def test_alerts_notice_an_abort_and_a_config_that_is_rejected(watched: tuple[ServerProcess, Prometheus]) -> None:
    server, prometheus = watched
    assert "ServepruneRolloutAborted" not in prometheus.alerts()
    answer = operator(server, "POST", "rollouts/fashion/abort", json={"who": "the test", "why": "to see"})
    assert answer.status_code == 200, answer.text
    config = server.folder / "serveprune.yaml"
    config.write_text(config.read_text() + "\nnonsense: true\n")

    # The first fires at once, the other one when it has lasted.
    wanted = {"ServepruneRolloutAborted": "firing", "ServepruneConfigReloadFailed": "pending"}
    wait_until(lambda: wanted.items() <= prometheus.alerts().items(), what=f"Prometheus says {wanted}")
