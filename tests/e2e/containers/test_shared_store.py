"""What images have besides: a store in a bucket, and traces. The small one takes what the other published."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from e2e.containers.container import REACHES_THIS_MACHINE, THIS_MACHINE, Container
from e2e.containers.engine import Engine
from e2e.containers.every_tier import ask_every_tier
from e2e.containers.images import FULL, SERVE
from e2e.deployment import copy_demo_data
from e2e.otlp_receiver import Received, receiving_over_http
from e2e.s3_server import ENVIRONMENT, S3Server, running
from e2e.server_process import wait_until

OPTIONS = tuple(
    word
    for name, value in {**ENVIRONMENT, "OTEL_BSP_SCHEDULE_DELAY": "100"}.items()
    for word in ("--env", f"{name}={value}")
)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    yield from running(tmp_path_factory.mktemp("s3") / "server.log")


@pytest.fixture(scope="module")
def collector() -> Iterator[Received]:
    with receiving_over_http() as received:
        yield received


@pytest.fixture(scope="module")
def shared_config(config: Path, s3: S3Server, collector: Received, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of the other containers, but for its store, and with traces."""
    folder = tmp_path_factory.mktemp("shared")
    copy_demo_data(folder)
    document = yaml.safe_load((config / "serveprune.yaml").read_text(encoding="utf-8"))
    del document["models"]["slow"]
    endpoint = f"http://{THIS_MACHINE}:{s3.port}"
    document["store"] = {"path": "s3://bucket/tiers", "options": {"endpoint_url": endpoint}}
    document["server"]["tracing"] = {"endpoint": collector.endpoint.replace("127.0.0.1", THIS_MACHINE)}
    (folder / "serveprune.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def test_small_image_serves_what_the_other_published_to_a_bucket(
    images: Engine, full: Container, s3: S3Server, collector: Received, shared_config: Path
) -> None:
    images.run(
        *("podman", "run", "--rm", "--read-only", "--network", REACHES_THIS_MACHINE, *OPTIONS),
        *("--volume", f"{shared_config}:/etc/serveprune:ro", "--volume", "store:/var/lib/serveprune", FULL),
        *("cache", "shared", "publish", "--config", "/etc/serveprune/serveprune.yaml"),
    )
    assert s3.objects("tiers/artifacts")
    # Nothing but the bucket has them now: its volume is empty.
    with Container(
        images, SERVE, config=shared_config, store="copies", network=REACHES_THIS_MACHINE, options=OPTIONS
    ) as container:
        container.wait_settled("fashion", "ready")

        ask_every_tier(container, shared_config)

        assert container.metric("serveprune_store_events_total", event="fetched") == 2
        assert container.metric("serveprune_builds_total") == 0
        tiers = {tier["tier"]: tier["artifact"] for tier in full.tiers("fashion")}
        assert {tier["tier"]: tier["artifact"] for tier in container.tiers("fashion")} == tiers
        # Two tiers over two protocols.
        wait_until(lambda: len(collector.named("compute")) >= 4, what="the requests are traced")
