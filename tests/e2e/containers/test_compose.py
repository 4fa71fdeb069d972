"""deploy/compose.yaml: what it says, and run, but for Grafana, whose image only a registry has."""

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from e2e.containers.engine import BASE, ROOT, Engine
from e2e.monitoring import prometheus_tool
from e2e.server_process import COMMAND, wait_until

FILE = ROOT / "deploy" / "compose.yaml"
COMPOSE = Path(COMMAND[0]).with_name("podman-compose")
VARIABLES = ("HTTP_PORT", "GRPC_PORT", "METRICS_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
OWN_PARTS = ("serveprune", "prometheus")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return read


def test_what_is_mounted_is_in_the_checkout(document: dict[str, Any]) -> None:
    mounts = [mount for service in document["services"].values() for mount in service["volumes"]]
    folders = [FILE.parent / mount.partition(":")[0] for mount in mounts if mount.startswith(".")]

    assert len(folders) >= 3
    assert [folder for folder in folders if not folder.is_dir()] == []
    named = {mount.partition(":")[0] for mount in mounts if not mount.startswith(".")}
    assert named == set(document["volumes"])


def test_ports_are_open_to_this_machine_only(document: dict[str, Any]) -> None:
    ports = [port for service in document["services"].values() for port in service["ports"]]

    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:${")] == []


def test_compose_reads_the_file_as_it_is_meant() -> None:
    shown = subprocess.run(
        [COMPOSE, "-f", FILE, "config"], capture_output=True, text=True, timeout=100, check=True
    ).stdout

    services = yaml.safe_load(shown)["services"]
    assert set(services) == {"serveprune", "prometheus", "grafana"}
    assert "127.0.0.1:8080:8080" in services["serveprune"]["ports"]


@pytest.fixture(scope="module")
def prometheus_image(images: Engine, document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Debian's Prometheus under the name of the image that the file asks for."""
    binary = prometheus_tool("prometheus")
    if shutil.which("iptables") is None:
        pytest.skip("no iptables, which networks of containers need")
    folder = tmp_path_factory.mktemp("prometheus")
    shutil.copy(binary, folder / "prometheus")
    (folder / "Dockerfile").write_text(
        f"FROM {BASE}\n"
        "COPY prometheus /bin/prometheus\n"
        'ENTRYPOINT ["/bin/prometheus"]\n'
        'CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]\n',
        encoding="utf-8",
    )
    images.build(document["services"]["prometheus"]["image"], context=folder)


@pytest.fixture(scope="module")
def ports(images: Engine, prometheus_image: None) -> Iterator[dict[str, str]]:
    """The running services, by the ports they have on this machine."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in VARIABLES]
        chosen = {name: str(held.getsockname()[1]) for name, held in zip(VARIABLES, sockets, strict=True)}
    compose = (COMPOSE, "-f", FILE)
    try:
        images.run(*compose, "up", "--no-build", "--detach", *OWN_PARTS, environment=chosen)
        yield chosen
    finally:
        images.tried(*compose, "down", "--volumes", environment=chosen)


def test_prometheus_scrapes_what_serveprune_serves(ports: dict[str, str]) -> None:
    wait_until(lambda: is_ready(f"http://127.0.0.1:{ports['HTTP_PORT']}"), what="the classifier is ready")
    image = (ROOT / "serveprune" / "demo" / "boot.png").read_bytes()
    url = f"http://127.0.0.1:{ports['HTTP_PORT']}/v2/models/fashion/infer"
    answer = httpx.post(url, content=image, headers={"Content-Type": "image/png"}, trust_env=False, timeout=60)
    assert answer.status_code == 200, answer.text

    prometheus = f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}"
    wait_until(lambda: value(prometheus, 'up{job="serveprune"}') == 1, what="Prometheus has scraped it")
    requests = 'sum(serveprune_requests_total{model="fashion",code="OK"})'
    wait_until(lambda: value(prometheus, requests) == 1, what="the request is in Prometheus")


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v2/health/ready", trust_env=False, timeout=20).status_code == 200
    except httpx.TransportError:
        return False


def value(prometheus: str, query: str) -> float | None:
    try:
        answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": query}, trust_env=False, timeout=20)
    except httpx.TransportError:
        return None
    result = json.loads(answer.text)["data"]["result"]
    return float(result[0]["value"][1]) if result else None
