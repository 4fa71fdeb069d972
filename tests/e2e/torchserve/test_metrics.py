"""What TorchServe's own metrics endpoint shows of our tiers, and the pages of the workers themselves."""

import os
import re
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from e2e.deployment import DYNAMIC_INT8, write_config
from e2e.graphs import CARRIER_WIDTH, write_carrier_model
from e2e.server_process import wait_until
from e2e.torchserve.conftest import carrier_inputs
from e2e.torchserve.hosted import HostedTorchServe, package
from serveprune.handlers.torchserve.metrics_file import CARRIED
from serveprune.observability.metrics import METRICS

MODEL = "carrier"
TIERS = ("dense", "int8")
WORKERS = 2
READY_SECONDS = 300.0
_PAGE = re.compile(r"metrics of this worker at (http://\S+)")


class Hosted(NamedTuple):
    server: HostedTorchServe
    taken_port: int


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    """Two workers of one model with two ready tiers; the first port for their own pages is taken."""
    folder = tmp_path_factory.mktemp("metrics")
    write_carrier_model(folder / f"{MODEL}.onnx")
    random = np.random.default_rng(3)
    numbers, rows = np.arange(64, dtype=np.int64)[:, np.newaxis], random.normal(size=(64, CARRIER_WIDTH))
    np.savez(folder / "samples.npz", id=numbers, x=rows.astype(np.float32))
    config = write_config(
        folder,
        profiles={"int8": DYNAMIC_INT8},
        models={
            MODEL: {
                "source": {"onnx": f"{MODEL}.onnx"},
                "tiers": list(TIERS),
                "evaluation": {"file": "samples.npz"},
            }
        },
    )
    package(config, MODEL, "--workers", str(WORKERS))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with HostedTorchServe(folder, environment={"SERVEPRUNE_METRICS": f"127.0.0.1:{port}"}) as server:
            found = Hosted(server.wait_ready(), port)
            wait_until(lambda: all_ready(server), what="both workers say that int8 is ready", seconds=READY_SECONDS)
            yield found


def test_requests_are_counted_by_tier_over_all_workers(hosted: Hosted) -> None:
    server = hosted.server
    before = counted(shown(server), "serveprune_requests_total")
    sent: Counter[tuple[str, str]] = Counter()
    for number in range(40):
        tier = TIERS[number % 3 == 0]
        answer = server.ask(MODEL, tier=tier, json=carrier_inputs(number))
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-compression-tier"] == tier
        sent[tier, "OK"] += 1
    for _ in range(3):
        assert server.ask(MODEL, tier="int8", content=b"{").status_code == 400
    expected = before + sent
    rejected = Counter({("INVALID_ARGUMENT",): 3})

    def agrees() -> bool:
        page = shown(server)
        return (
            counted(page, "serveprune_requests_total") == expected
            and counted(page, "serveprune_rejected_requests_total", "code") == rejected
        )

    wait_until(agrees, what=f"TorchServe shows {expected} and {rejected}")
    histogram = counted(shown(server), "serveprune_request_duration_seconds_count", "tier")
    assert histogram == Counter({(tier,): expected[tier, "OK"] for tier in TIERS})
    # The sum over both workers' own pages is the same, and both had some of the requests.
    pages = own_pages(server)
    own = [counted(page, "serveprune_requests_total") for page in pages]
    assert sum(own, Counter()) == counted(shown(server), "serveprune_requests_total")
    assert all(own)


def test_gauges_are_told_apart_by_torchserves_names_of_workers(hosted: Hosted) -> None:
    page = shown(hosted.server)
    ready = {(labels["tier"], labels["WorkerName"]): value for labels, value in page["serveprune_tier_ready"]}
    names = {labels["WorkerName"] for labels, _ in page["WorkerLoadTime"]}
    assert len(names) == WORKERS
    assert ready == {(tier, name): 1.0 for tier in TIERS for name in names}


def test_own_pages_have_everything_on_the_ports_that_are_free(hosted: Hosted) -> None:
    addresses = own_addresses(hosted.server)
    ports = {int(address.rpartition(":")[2].partition("/")[0]) for address in addresses}
    assert len(ports) == WORKERS
    assert all(hosted.taken_port < port < hosted.taken_port + 64 for port in ports)
    for address in addresses:
        text = httpx.get(address, trust_env=False).text
        families = {family.name for family in text_string_to_metric_families(text)}
        assert families >= {metric.name.removesuffix("_total") for metric in METRICS}


def test_all_that_is_told_is_taken(hosted: Hosted) -> None:
    assert hosted.server.ask(MODEL, tier="int8", json=carrier_inputs(1)).status_code == 200
    wait_until(lambda: "serveprune_request_duration_seconds_count" in shown(hosted.server), what="its time is shown")
    shown_names = {name.removesuffix("_count") for name in shown(hosted.server)}
    unused = {"preprocessing", "dropped", "adaptive", "builds", "progress", "store_events", "shadowed"}
    missing = {metric.name for metric in CARRIED} - shown_names
    assert not {name for name in missing if not any(word in name for word in unused)}
    logs = [file.read_text(encoding="utf-8") for file in (hosted.server.folder / "ran" / "logs").iterdir()]
    assert not [line for log in logs for line in log.splitlines() if "ERROR" in line or "METRICS" in line]


def test_counts_do_not_fall_when_a_worker_is_killed(hosted: Hosted) -> None:
    server = hosted.server
    before = counted(shown(server), "serveprune_requests_total")
    old = own_addresses(server)
    headers = {"Authorization": f"Bearer {server.keys['management']}"}
    url = f"http://{server.endpoints['management']}/models/{MODEL}"
    workers = httpx.get(url, headers=headers, trust_env=False).json()[0]["workers"]
    os.kill(workers[0]["pid"], signal.SIGKILL)
    wait_until(lambda: len(all_addresses(server)) > WORKERS, what="the new worker has a page", seconds=READY_SECONDS)
    wait_until(lambda: all_ready(server), what="it is ready", seconds=READY_SECONDS)
    # The page of the one that ended is free again.
    assert all_addresses(server)[-1] in old

    answer = server.ask(MODEL, tier="int8", json=carrier_inputs(1))
    assert answer.status_code == 200, answer.text
    expected = before + Counter({("int8", "OK"): 1})
    wait_until(
        lambda: counted(shown(server), "serveprune_requests_total") == expected, what=f"TorchServe shows {expected}"
    )
    names = {labels["WorkerName"] for labels, _ in shown(server)["serveprune_tier_ready"]}
    assert len(names) == WORKERS


def all_ready(server: HostedTorchServe) -> bool:
    ready = [value for _, value in shown(server).get("serveprune_tier_ready", [])]
    return ready == [1.0] * (len(TIERS) * WORKERS)


Page = dict[str, list[tuple[dict[str, str], float]]]
"""Samples by their names."""


def shown(server: HostedTorchServe) -> Page:
    return read_page(f"http://{server.endpoints['metrics']}/metrics")


def own_pages(server: HostedTorchServe) -> list[Page]:
    return [read_page(address) for address in own_addresses(server)]


def own_addresses(server: HostedTorchServe) -> list[str]:
    return sorted(set(all_addresses(server)))


def all_addresses(server: HostedTorchServe) -> list[str]:
    """Return what was told in the log, in that order."""
    log: Path = server.folder / "ran" / "logs" / "workers.log"
    return _PAGE.findall(log.read_text(encoding="utf-8"))


def read_page(address: str) -> Page:
    page: Page = {}
    for family in text_string_to_metric_families(httpx.get(address, trust_env=False).text):
        for sample in family.samples:
            page.setdefault(sample.name, []).append((sample.labels, sample.value))
    return page


def counted(page: Page, name: str, *labels: str) -> Counter[tuple[str, ...]]:
    """Return what a series stands at by these labels, without what stands at 0."""
    found: Counter[tuple[str, ...]] = Counter()
    for sample, value in page.get(name, []):
        found[tuple(sample[label] for label in labels or ("tier", "code"))] += int(value)
    return +found
