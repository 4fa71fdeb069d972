"""What the images are, and how their containers live."""

import json
import tomllib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from contract.grpc.messages import of_arrays

from e2e.containers.container import Container
from e2e.containers.engine import ROOT, Engine
from e2e.containers.images import FULL, SERVE, sizes_bytes
from e2e.deployment import fashion_images
from e2e.graphs import SLOW_WIDTH, slow_inputs
from e2e.server_process import wait_until

USER = 10001
IN_FLIGHT = 12
STEPS_OF_A_MOMENT = 2_000
STEPS_OF_SECONDS = 1_000_000


@pytest.fixture(params=["full", "serving"])
def container(request: pytest.FixtureRequest) -> Container:
    found: Container = request.getfixturevalue(request.param)
    return found


def ask(container: Container, config: Path) -> None:
    """Ask every tier over both protocols."""
    image = fashion_images(config, 1)
    for tier in ("dense", "int8"):
        over_http = container.http.post(
            f"/v2/models/fashion@{tier}/infer",
            content=(config / "boot.png").read_bytes(),
            headers={"Content-Type": "image/png"},
        )
        assert over_http.status_code == 200, over_http.text
        assert over_http.headers["x-compression-tier"] == tier
        over_grpc = container.stub.ModelInfer(of_arrays(f"fashion@{tier}", image=image), timeout=60)
        assert over_grpc.parameters["tier"].string_param == tier
        assert len(over_grpc.raw_output_contents[0]) == 4 * 10


def test_every_tier_answers_over_both_protocols_and_is_counted(container: Container, config: Path) -> None:
    before = {tier: requests_of(container, tier) for tier in ("dense", "int8")}

    ask(container, config)

    assert {tier: requests_of(container, tier) - before[tier] for tier in before} == {"dense": 2, "int8": 2}


def requests_of(container: Container, tier: str) -> float:
    return container.metric("serveprune_requests_total", model="fashion", tier=tier)


def test_process_is_confined(container: Container) -> None:
    code = (
        "import json, os, subprocess, sys\n"
        "lines = open('/proc/1/status').read().splitlines()\n"
        "status = dict(line.split(':\\t', 1) for line in lines if ':\\t' in line)\n"
        "def attempt(what):\n"
        "    try: what()\n"
        "    except OSError as error: return type(error).__name__, error.errno\n"
        "    return None\n"
        "print(json.dumps({'status': status, 'root': attempt(lambda: open('/opt/serveprune/x', 'w')),\n"
        "  'tmp': attempt(lambda: open('/tmp/x', 'w')),\n"
        "  'shell': attempt(lambda: subprocess.run(['/bin/sh', '-c', ':'])),\n"
        "  'memory': next(open(file).read() for file in ('/sys/fs/cgroup/memory.max',\n"
        "     '/sys/fs/cgroup/memory/memory.limit_in_bytes') if os.path.exists(file))}))"
    )

    said = json.loads(container.said_by_python(code))

    status = said["status"]
    assert status["Uid"].split() == status["Gid"].split() == [str(USER)] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert said["root"] == said["tmp"] == ["OSError", 30]  # a read-only file system
    assert said["shell"][0] == "PermissionError"
    assert int(said["memory"]) == 3 * 2**30


def test_probe_finds_the_server_ready(container: Container) -> None:
    assert container.health() == 0
    assert container.health("--ready") == 0


def test_full_image_built_what_the_small_one_serves(full: Container, serving: Container) -> None:
    assert full.metric("serveprune_builds_total", outcome="built") == 3
    assert serving.metric("serveprune_builds_total") == 0
    assert {tier["built_here"] for tier in full.tiers("fashion")} == {True}
    assert {tier["built_here"] for tier in serving.tiers("fashion")} == {False}
    absent = "import importlib.util as u; print([name for name in ('torch', 'onnx', 'pip') if u.find_spec(name)])"
    assert serving.said_by_python(absent) == "[]"


def test_container_that_starts_again_builds_nothing(images: Engine, full: Container, config: Path) -> None:
    with Container(images, FULL, config=config, store="store") as again:
        again.wait_settled("fashion", "ready")

        ask(again, config)

        assert again.metric("serveprune_builds_total", outcome="built") == 0


def test_probe_tells_live_from_ready(images: Engine, config: Path) -> None:
    with Container(images, SERVE, config=config, store="empty") as container:
        # Nothing is in its store, and it cannot build: it stays as servers are that have not built yet.
        container.wait_settled("fashion", "failed")

        assert container.health() == 0
        assert container.health("--ready") == 1
        probed = images.tried("podman", "healthcheck", "run", container.name)
        assert probed.returncode == 0, probed.stderr


def test_probe_finds_nobody_where_no_server_is(images: Engine) -> None:
    finished = images.tried("podman", "run", "--rm", "--network", "none", SERVE, "health")

    assert finished.returncode == 1
    assert "not live: " in finished.stderr


def test_stop_answers_every_request_in_flight(images: Engine, full: Container, config: Path) -> None:
    with (
        Container(images, SERVE, config=config, store="store") as container,
        ThreadPoolExecutor(IN_FLIGHT) as threads,
    ):
        container.wait_settled("slow", "ready")
        over_http: list[Future[httpx.Response]] = []
        over_grpc: list[Future[bytes]] = []
        for index in range(IN_FLIGHT):
            # The first two hold both executors, so that all others are in flight too when the signal comes.
            steps = STEPS_OF_SECONDS if index < 2 else STEPS_OF_A_MOMENT
            if index % 2:
                over_http.append(threads.submit(ask_http, container, steps))
            else:
                over_grpc.append(threads.submit(ask_grpc, container, steps))
            if index < 2:
                wait_in_flight(container, index + 1)
        wait_in_flight(container, IN_FLIGHT)

        assert container.stop(seconds=270) == 0

        assert [answer.result().status_code for answer in over_http] == [200] * (IN_FLIGHT // 2)
        assert [len(answer.result()) for answer in over_grpc] == [4 * SLOW_WIDTH] * (IN_FLIGHT // 2)
        assert "Traceback" not in container.log


def ask_http(container: Container, steps: int) -> httpx.Response:
    inputs = [
        {"name": name, "datatype": {"i": "INT64", "f": "FP32"}[array.dtype.kind], "shape": array.shape, "data": data}
        for name, array in slow_inputs(steps).items()
        for data in [array.ravel().tolist()]
    ]
    return container.http.post("/v2/models/slow/infer", content=json.dumps({"inputs": inputs}))


def ask_grpc(container: Container, steps: int) -> bytes:
    return bytes(container.stub.ModelInfer(of_arrays("slow", **slow_inputs(steps))).raw_output_contents[0])


def wait_in_flight(container: Container, count: int) -> None:
    wait_until(
        lambda: container.metric("serveprune_requests_in_flight") == count, what=f"{count} requests are in flight"
    )


@pytest.mark.parametrize("image", [SERVE, FULL])
def test_image_says_what_it_is_and_keeps_no_secret(images: Engine, image: str) -> None:
    (described,) = json.loads(images.run("podman", "image", "inspect", image))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

    labels = described["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == version
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert described["Config"]["StopSignal"] in ("SIGTERM", "15")
    assert described["Config"]["Entrypoint"] == ["/opt/serveprune/bin/serveprune"]
    code = "import os; print([path for path in ('/etc/pip.conf', '/run/secrets/pip') if os.path.getsize(path)])"
    found = images.tried(
        *("podman", "run", "--rm", "--network", "none", "--entrypoint", "/opt/serveprune/bin/python", image),
        *("-c", code.replace("os.path.getsize(path)", "os.path.exists(path) and os.path.getsize(path)")),
    )
    assert found.stdout.strip() == "[]", found.stderr


def test_small_image_is_small(images: Engine) -> None:
    sizes = sizes_bytes(images)
    print(sizes)

    assert sizes["serveprune:serve"] < sizes["serveprune:full"] / 2
