"""What Prometheus would scrape."""

import itertools

import numpy as np
import pytest
from contract.grpc.messages import of_arrays
from prometheus_client.parser import text_string_to_metric_families

from e2e.deployment import fashion_images
from e2e.server_process import ServerProcess
from serveprune.observability.metrics import METRICS

TEXT = "a gripping, funny and beautifully acted film"
MARK = "zzq"


def series(server: ServerProcess) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(server.metrics_text())
        for sample in family.samples
    }


def test_metrics_are_those_of_the_table_and_no_others(server: ServerProcess) -> None:
    families = {
        (family.name, family.type)
        for family in text_string_to_metric_families(server.metrics_text())
        if not family.name.startswith(("process_", "python_"))
    }

    # The exposition format names a counter's family without its suffix.
    assert families == {(metric.name.removesuffix("_total"), metric.kind) for metric in METRICS}


def test_labels_are_those_of_the_table(server: ServerProcess) -> None:
    declared = {metric.name: set(metric.labels) for metric in METRICS}
    for name, labels in series(server):
        for base in (name, name.removesuffix("_bucket"), name.removesuffix("_sum"), name.removesuffix("_count")):
            if base in declared:
                assert {label for label, _ in labels} - {"le"} == declared[base], name


@pytest.mark.parametrize("tier", ["dense", "int8"])
def test_counters_move_with_requests(server: ServerProcess, tier: str) -> None:
    variant = {"model": "minilm", "version": "1", "tier": tier}
    watched = {
        "serveprune_requests_total": {**variant, "code": "OK"},
        "serveprune_requested_tier_total": variant,
        "serveprune_served_tier_total": {**variant, "reason": "requested"},
        "serveprune_request_duration_seconds_count": variant,
        "serveprune_request_preprocessing_seconds_count": variant,
        "serveprune_request_queue_seconds_count": variant,
        "serveprune_request_compute_seconds_count": variant,
        "serveprune_batch_rows_sum": variant,
    }
    before = {name: server.metric(name, **labels) for name, labels in watched.items()}

    for _ in range(3):
        headers = {"Content-Type": "text/plain"}
        assert server.http.post(f"/v2/models/minilm@{tier}/infer", content=TEXT, headers=headers).status_code == 200

    after = {name: server.metric(name, **labels) for name, labels in watched.items()}
    assert {name: after[name] - before[name] for name in watched} == dict.fromkeys(watched, 3)


def test_default_tier_is_counted_as_default(server: ServerProcess) -> None:
    labels = {"model": "fashion", "tier": "dense", "reason": "default"}
    before = server.metric("serveprune_served_tier_total", **labels)

    server.stub.ModelInfer(of_arrays("fashion", image=fashion_images(server.folder, 1)))

    assert server.metric("serveprune_served_tier_total", **labels) == before + 1


def test_refusals_are_counted_by_code(server: ServerProcess) -> None:
    def counts() -> dict[str, float]:
        refused = {code: server.metric("serveprune_rejected_requests_total", code=code) for code in ("NOT_FOUND",)}
        return refused | {"INVALID_ARGUMENT": _invalid_arguments(server)}

    before = counts()
    image = fashion_images(server.folder, 1)
    server.grpc_refusal(of_arrays("nobody", image=image))
    assert server.http.post("/v2/models/nobody/infer", content=b'{"inputs":[]}').status_code == 404
    server.grpc_refusal(of_arrays("fashion", image=image.astype(np.float64)))
    assert server.http.post("/v2/models/fashion/infer", content=b"{").status_code == 400

    assert {code: count - before[code] for code, count in counts().items()} == {"NOT_FOUND": 2, "INVALID_ARGUMENT": 2}


def test_tiers_are_described(server: ServerProcess) -> None:
    for model, tier in itertools.product(("minilm", "fashion"), ("dense", "int8")):
        standing = server.tiers(model)[tier]
        assert server.metric("serveprune_tier_ready", model=model, tier=tier) == 1
        assert server.metric("serveprune_tier_bytes", model=model, tier=tier) == standing["bytes"]
        if tier != "dense":
            assert server.metric("serveprune_tier_speedup_ratio", model=model, tier=tier) == standing["speedup"]
            quality = server.metric("serveprune_tier_quality", model=model, tier=tier, metric=standing["metric"])
            assert quality == standing["quality"][standing["metric"]]
    assert server.metric("serveprune_store_bytes") > 0
    assert server.metric("serveprune_store_events_total", event="hit") > 0


def test_text_of_clients_makes_no_series(server: ServerProcess) -> None:
    image = fashion_images(server.folder, 1)
    server.grpc_refusal(of_arrays(f"{MARK}0", image=image))
    server.http.post("/v2/models/fashion/infer", content=b"{")
    server.grpc_refusal(of_arrays("fashion@nothing", image=image))
    before = series(server)

    for number in range(20):
        name = f"{MARK}{number}"
        refused = [
            server.http.post(f"/v2/models/{name}/infer", content=b'{"inputs":[]}'),
            server.http.post(f"/v2/models/fashion@{name}/infer", content=b'{"inputs":[]}'),
            server.http.post(
                "/v2/models/fashion/infer", content=b'{"inputs":[]}', headers={"x-compression-tier": name}
            ),
            server.http.post(f"/v2/models/fashion/versions/{name}/infer", content=b'{"inputs":[]}'),
            server.http.get(f"/{name}"),
        ]
        assert all(answer.status_code in (400, 404) for answer in refused)
        server.grpc_refusal(of_arrays("fashion", image=image), metadata=(("x-compression-tier", name),))
        message = of_arrays("fashion", image=image)
        message.parameters["tier"].string_param = f'{name}"}}\n# HELP {name}'
        server.grpc_refusal(message)

    assert MARK not in server.metrics_text()
    assert series(server) == before


def _invalid_arguments(server: ServerProcess) -> float:
    # Before a tier was chosen it is a rejection, after that a request that ended so.
    return server.metric("serveprune_rejected_requests_total", code="INVALID_ARGUMENT") + server.metric(
        "serveprune_requests_total", code="INVALID_ARGUMENT"
    )
