"""What the images are, and how their containers live."""

import json
import signal
import tomllib
from pathlib import Path

import pytest

from e2e.containers.container import Container
from e2e.containers.engine import ROOT, Engine
from e2e.containers.every_tier import TIERS, ask_every_tier
from e2e.containers.images import FULL, SERVE, sizes_bytes
from e2e.server_process import wait_until
from e2e.slow_requests import in_flight

USER = 10001
IN_FLIGHT = 12
STEPS_OF_SECONDS = 1_000_000


@pytest.fixture(params=["full", "serving"])
def container(request: pytest.FixtureRequest) -> Container:
    found: Container = request.getfixturevalue(request.param)
    return found


def test_every_tier_answers_over_both_protocols_and_is_counted(container: Container, config: Path) -> None:
    before = {tier: requests_of(container, tier) for tier in TIERS}

    ask_every_tier(container, config)

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

        ask_every_tier(again, config)

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
    with Container(images, SERVE, config=config, store="store") as container:
        container.wait_settled("slow", "ready")
        with in_flight(container, IN_FLIGHT, steps_of_the_first=STEPS_OF_SECONDS) as asked:
            assert container.stop(seconds=270) == 0

            asked.check_answered()
            assert "Traceback" not in container.log


def test_stop_is_heeded_while_it_still_starts(images: Engine, config: Path, tmp_path: Path) -> None:
    # The first process of a container is spared every signal that it has no handler for. Here imports take their time.
    (tmp_path / "typer.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(600)\n")
    tmp_path.chmod(0o755)
    options = ("--volume", f"{tmp_path}:/slow:ro", "--env", "PYTHONPATH=/slow")
    with Container(images, SERVE, config=config, store="never", options=options) as container:
        wait_until(lambda: "importing" in container.log, what="the command is imported")

        assert container.stop(seconds=60) == 128 + signal.SIGTERM


@pytest.mark.parametrize("image", [SERVE, FULL])
def test_image_says_what_it_is_and_keeps_no_secret(images: Engine, image: str) -> None:
    (described,) = json.loads(images.run("podman", "image", "inspect", image))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

    labels = described["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == version
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert described["Config"]["StopSignal"] in ("SIGTERM", "15")
    assert described["Config"]["Entrypoint"] == ["/opt/serveprune/bin/serveprune"]
    secrets = ("/etc/pip.conf", "/run/secrets/pip")
    code = f"import os; print([file for file in {secrets} if os.path.exists(file) and os.path.getsize(file)])"
    found = images.tried(
        *("podman", "run", "--rm", "--network", "none", "--entrypoint", "/opt/serveprune/bin/python", image, "-c", code)
    )
    assert found.stdout.strip() == "[]", found.stderr


def test_small_image_is_small(images: Engine) -> None:
    sizes = sizes_bytes(images)
    print(sizes)

    assert sizes["serveprune:serve"] < sizes["serveprune:full"] / 2
