"""Tiers that are made on the fly inside TorchServe, whatever becomes of their builds and of the workers."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from e2e.server_process import is_alive, wait_until
from e2e.torchserve.conftest import archive_fashion, wait_tier
from e2e.torchserve.messages import image_field
from e2e.torchserve.torchserve_process import TorchServeProcess

Start = Callable[..., TorchServeProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers that are stopped after the test."""
    with ExitStack() as running:
        yield lambda folder, **options: running.enter_context(TorchServeProcess(folder, **options))


def ask(server: TorchServeProcess, tier: str | None = None, **said: Any) -> Any:
    body = {**image_field(server.folder)["json"], **said}
    return server.ask("fashion", json=body, headers={} if tier is None else {"x-compression-tier": tier})


def copied(store: Path, folder: Path) -> Path:
    return Path(shutil.copytree(store, folder / "artifacts"))


def served_by_all(server: TorchServeProcess, tier: str) -> bool:
    """Tell whether so many requests at once get a tier that every worker has had some of them."""
    request = {**image_field(server.folder), "headers": {"x-compression-tier": tier}}
    answers = server.ask_at_once("fashion", [request] * 24)
    assert {answer.status_code for answer in answers} == {200}
    return {answer.headers["x-compression-tier"] for answer in answers} == {tier}


def manifests(store: Path) -> dict[str, tuple[str, str]]:
    """Return the kind of each artifact, and when it was made."""
    found = {}
    for file in (store / "artifacts").glob("*/manifest.json"):
        document = json.loads(file.read_text(encoding="utf-8"))
        found[file.parent.name] = (document["kind"], document["created"])
    return found


def test_workers_share_one_build_and_take_its_tier_up_and_a_second_start_finds_it(
    python: Path, start: Start, tmp_path: Path
) -> None:
    store = tmp_path / "artifacts"
    archive_fashion(tmp_path, python=python, store=store, workers=2)
    server = start(tmp_path).wait_ready("fashion")
    workers = server.worker_pids("fashion")
    assert len(set(workers)) == 2

    # Both want the build; who came first does it, and is held so that nothing below is a race.
    (child,) = server.wait_build()
    child.suspend()
    wait_until(lambda: "fashion int8: waiting for another" in server.log, what="the other worker waits")
    early = ask(server, "int8")
    assert early.status_code == 200, early.text
    assert early.headers["x-compression-tier"] == "dense"
    assert "int8 is still being built" in early.headers["x-compression-tier-reason"]
    strict = ask(server, "int8", strict_tier=True)
    assert strict.status_code == 503
    assert int(strict.headers["retry-after"]) >= 1
    assert server.builds() == [child]
    child.resume()

    wait_tier(server, "fashion", "int8", **image_field(tmp_path))
    stored = manifests(store)
    assert sorted(kind for kind, _ in stored.values()) == ["dense", "tier"]
    wait_until(lambda: served_by_all(server, "int8"), what="both workers serve the tier")
    assert ask(server, "int8", strict_tier=True).headers["x-compression-tier"] == "int8"
    assert server.worker_pids("fashion") == workers
    assert manifests(store) == stored
    wait_until(lambda: not server.builds(), what="the builds' processes are gone")
    server.stop()

    again = start(tmp_path).wait_ready("fashion")
    wait_until(lambda: served_by_all(again, "int8"), what="both workers serve what they found")
    assert manifests(store) == stored
    assert "building" not in again.log


def test_build_that_is_killed_leaves_dense_serving(
    python: Path, start: Start, dense_store: Path, tmp_path: Path
) -> None:
    archive_fashion(tmp_path, python=python, store=copied(dense_store, tmp_path))
    server = start(tmp_path).wait_ready("fashion")
    (child,) = server.wait_build()
    child.kill()

    wait_until(lambda: ask(server, "int8", strict_tier=True).status_code == 409, what="the build has failed")

    assert "SIGKILL" in ask(server, "int8", strict_tier=True).json()["error"]
    answer = ask(server, "int8")
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-compression-tier"] == "dense"
    assert ask(server).headers["x-compression-tier"] == "dense"


def test_build_that_fails_is_tried_once_for_all_workers(
    python: Path, start: Start, dense_store: Path, tmp_path: Path
) -> None:
    archive_fashion(tmp_path, python=python, store=copied(dense_store, tmp_path), workers=2)
    server = start(tmp_path).wait_ready("fashion")
    (child,) = server.wait_build()
    child.suspend()
    wait_until(lambda: "fashion int8: waiting for another" in server.log, what="the other worker waits")
    child.kill()

    wait_until(lambda: server.log.count("fashion int8: build failed") == 2, what="both know that it has failed")

    assert server.log.count("SIGKILL") == 2
    assert server.builds() == []
    request = {**image_field(tmp_path), "headers": {"x-compression-tier": "int8"}}
    answers = server.ask_at_once("fashion", [request] * 24)
    assert {(answer.status_code, answer.headers["x-compression-tier"]) for answer in answers} == {(200, "dense")}


def test_worker_that_is_killed_while_it_builds_comes_back_and_builds(
    python: Path, start: Start, dense_store: Path, tmp_path: Path
) -> None:
    archive_fashion(tmp_path, python=python, store=copied(dense_store, tmp_path))
    server = start(tmp_path).wait_ready("fashion")
    (child,) = server.wait_build()
    (worker,) = server.worker_pids("fashion")

    psutil.Process(worker).kill()

    wait_until(lambda: not is_alive(child.pid), what="the build ends with its worker")
    wait_until(lambda: _is_new(server, worker), what="there is another worker")
    wait_tier(server, "fashion", "int8", **image_field(tmp_path))

    # And once more while it serves.
    (second,) = server.worker_pids("fashion")
    psutil.Process(second).kill()
    wait_until(lambda: _is_new(server, second), what="there is a third worker")
    wait_tier(server, "fashion", "int8", **image_field(tmp_path))


def test_model_is_scaled_and_registered_again_while_its_tiers_stay(
    python: Path, start: Start, fashion_store: Path, tmp_path: Path
) -> None:
    archive_fashion(tmp_path, python=python, store=copied(fashion_store, tmp_path), workers=1)
    server = start(tmp_path).wait_ready("fashion")
    wait_tier(server, "fashion", "int8", **image_field(tmp_path))

    scaled = server.management.put("/models/fashion", params={"min_worker": 2, "max_worker": 2, "synchronous": "true"})
    assert scaled.status_code == 200, scaled.text
    assert len(server.wait_ready("fashion").worker_pids("fashion")) == 2
    wait_until(lambda: served_by_all(server, "int8"), what="the second worker serves the tier")

    assert server.management.delete("/models/fashion").status_code == 200
    assert ask(server).status_code == 404
    registered = server.management.post(
        "/models", params={"url": "fashion.mar", "initial_workers": 1, "synchronous": "true"}
    )
    assert registered.status_code == 200, registered.text
    wait_tier(server.wait_ready("fashion"), "fashion", "int8", **image_field(tmp_path))


def test_wrong_settings_are_said_in_the_log(python: Path, start: Start, tmp_path: Path) -> None:
    archive_fashion(tmp_path, python=python, store=tmp_path / "artifacts", said={"tiers": ["dense", "int9"]})
    server = start(tmp_path)

    wait_until(lambda: "handler.serveprune.tiers" in server.log, what="the log says what is wrong")


def _is_new(server: TorchServeProcess, worker: int) -> bool:
    workers = server.workers("fashion")
    return bool(workers) and all(each["status"] == "READY" and each["pid"] not in (0, worker) for each in workers)
