"""Two servers with caches of their own over one bucket, which a real S3-speaking server has on loopback."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from e2e.deployment import write_fashion
from e2e.s3_proxy import Fault, proxied
from e2e.s3_server import ENVIRONMENT, S3Server, free_port, running
from e2e.server_process import COMMAND, ServerProcess, wait_until

LEASE_SECONDS = 8

Replica = Callable[..., ServerProcess]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    yield from running(tmp_path_factory.mktemp("s3") / "server.log")


def config(folder: Path, s3_url: str, *, prefix: str, bucket: str = "bucket") -> Path:
    folder.mkdir(exist_ok=True)
    store = {
        "path": f"s3://{bucket}/{prefix}",
        "cache_path": "cache",
        "lease_seconds": LEASE_SECONDS,
        "timeout_seconds": 3,
        "options": {"endpoint_url": s3_url},
    }
    return write_fashion(folder, store=store)


@pytest.fixture
def replica(s3: S3Server, tmp_path: Path) -> Iterator[Replica]:
    with ExitStack() as running_servers:

        def start(name: str, **settings: Any) -> ServerProcess:
            file = config(tmp_path / name, settings.pop("url", s3.url), prefix=tmp_path.name, **settings)
            server = ServerProcess(file, environment=ENVIRONMENT)
            return running_servers.enter_context(server).wait_open()

        yield start


def test_the_s3_server_honours_conditional_writes(s3: S3Server) -> None:
    # What the other tests rest on.
    condition = {"If-None-Match": "*"}
    assert s3.http("PUT", "/bucket/once", content=b"first", headers=condition).status_code == 200
    assert s3.http("PUT", "/bucket/once", content=b"second", headers=condition).status_code == 412
    assert s3.http("GET", "/bucket/once").content == b"first"


def test_builder_is_killed_and_another_machine_takes_over_then_a_third_fetches(
    replica: Replica, s3: S3Server, tmp_path: Path
) -> None:
    prefix = tmp_path.name
    first = replica("first")
    first.wait_state("fashion", "dense", "ready")
    child = first.build_child()
    child.suspend()  # so that the build is in its middle when its server dies
    second = replica("second")
    second.wait_state("fashion", "dense", "ready")
    assert second.metric("serveprune_store_events_total", event="fetched") == 1
    wait_until(
        lambda: second.metric("serveprune_store_events_total", event="lease_waited") == 1,
        what="the second waits for the first",
    )
    assert second.tiers("fashion")["int8"]["progress"]["stage"] == "waiting for another machine's build"
    assert s3.objects(f"{prefix}/recipes") == []

    first.process.kill()
    child.kill()
    second.wait_state("fashion", "int8", "ready")
    assert "taken over" in second.log
    assert second.metric("serveprune_builds_total", tier="int8", outcome="built") == 1
    wait_until(
        lambda: second.metric("serveprune_store_events_total", event="published") == 1, what="the tier is published"
    )

    third = replica("third").wait_ready("fashion")
    assert third.metric("serveprune_store_events_total", event="fetched") == 2
    assert third.metric("serveprune_builds_total", outcome="built") == 0
    key = third.tiers("fashion")["int8"]["artifact"]
    assert key == second.tiers("fashion")["int8"]["artifact"]
    assert f"{prefix}/artifacts/{key}/manifest" in s3.objects(prefix)

    listed = _cache(tmp_path / "third", "ls")
    assert key in listed.stdout
    assert _cache(tmp_path / "third", "verify").returncode == 0
    (damaged,) = s3.objects(f"{prefix}/artifacts/{key}/files/")
    s3.http("PUT", f"/bucket/{damaged}", content=b"damaged")
    verified = _cache(tmp_path / "third", "verify")
    assert verified.returncode == 1
    assert key in verified.stdout


def test_warm_copy_serves_while_the_store_is_away_and_builds_wait_until_it_is_back(
    s3: S3Server, tmp_path: Path
) -> None:
    port = free_port()
    file = config(tmp_path / "one", f"http://127.0.0.1:{port}", prefix=tmp_path.name)
    with ServerProcess(file, environment=ENVIRONMENT) as cold:
        cold.wait_open()
        wait_until(
            lambda: (cold.tiers("fashion")["dense"]["progress"] or {}).get("stage") == "waiting for the shared store",
            what="the build waits",
        )
        with proxied(s3.url, port=port):
            cold.wait_ready("fashion")
        assert cold.http.get("/v2/models/fashion/ready").status_code == 200
    with ServerProcess(file, environment=ENVIRONMENT) as warm:
        warm.wait_open().wait_ready("fashion")
        assert warm.metric("serveprune_store_events_total", event="unreachable") == 0


def test_store_that_refuses_fails_the_tiers_until_it_is_mended_and_the_config_reloaded(
    replica: Replica, s3: S3Server
) -> None:
    with proxied(s3.url) as proxy:
        proxy.rule = lambda method, path: Fault.DENIED
        server = replica("denied", url=proxy.url)
        failed = server.wait_state("fashion", "dense", "failed")
        assert "expected the permissions that docs/shared_store.md lists" in failed["reasons"][0]
        assert server.http.get("/v2/health/live").status_code == 200
        assert server.http.get("/v2/health/ready").status_code != 200
        assert server.metric("serveprune_builds_total", outcome="built") == 0

        proxy.rule = lambda method, path: None
        server.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: {tier["state"] for tier in server.tiers("fashion").values()} == {"ready"}, what="all tiers serve"
        )


def test_store_that_hangs_is_waited_for(replica: Replica, s3: S3Server) -> None:
    with proxied(s3.url) as proxy:
        proxy.rule = lambda method, path: Fault.HUNG
        server = replica("hung", url=proxy.url)
        wait_until(
            lambda: (server.tiers("fashion")["dense"]["progress"] or {}).get("stage") == "waiting for the shared store",
            what="the build waits",
        )
        assert server.http.get("/v2/health/live").status_code == 200
        proxy.rule = lambda method, path: None
        server.wait_ready("fashion")


def test_bucket_that_is_not_there_is_named(replica: Replica) -> None:
    server = replica("wrong", bucket="nobodys")
    failed = server.wait_state("fashion", "dense", "failed")
    assert "s3://nobodys/" in failed["reasons"][0]
    assert "expected a bucket that exists" in failed["reasons"][0]


def _cache(folder: Path, command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, "cache", "shared", command, "--config", str(folder / "serveprune.yaml")],
        capture_output=True, text=True, timeout=120, env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip
