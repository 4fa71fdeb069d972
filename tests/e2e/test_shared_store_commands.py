"""The commands of machines that share a bucket, which a real S3-speaking server has on loopback."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.deployment import FASHION, INT8, write_fashion
from e2e.s3_proxy import Fault, proxied
from e2e.s3_server import ENVIRONMENT, S3Server, free_port, running
from e2e.server_process import COMMAND

PRUNE = {"passes": [{"prune": {"target": {"ratio": 0.8}}}]}
PROFILES = {"small": INT8, "pruned": PRUNE}
MODELS = {"fashion": FASHION | {"tiers": ["dense", "small"]}}

Machine = Callable[..., Path]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    yield from running(tmp_path_factory.mktemp("s3") / "server.log")


@pytest.fixture
def machine(s3: S3Server, tmp_path: Path) -> Machine:
    """Lay out a machine's folder, with a cache of its own, and return its config."""

    def make(name: str, *, url: str = "", **sections: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        document: dict[str, Any] = {"profiles": PROFILES, "models": MODELS}
        document["store"] = {
            "path": f"s3://bucket/{tmp_path.name}", "cache_path": "cache", "timeout_seconds": 2, "lease_seconds": 8,
            "options": {"endpoint_url": url or s3.url},
        }  # fmt: skip
        return write_fashion(folder, **(document | sections))

    return make


def start(config: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, *arguments, "--config", str(config)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, out, err


def run(config: Path, *arguments: str) -> tuple[int, str, str]:
    return ended(start(config, *arguments))


def kinds(s3: S3Server, prefix: str) -> dict[str, list[str]]:
    """Return the keys in the bucket by kind."""
    found: dict[str, list[str]] = {"dense": [], "tier": []}
    for name in s3.objects(f"{prefix}/artifacts/"):
        if name.endswith("/manifest"):
            manifest = json.loads(s3.http("GET", f"/bucket/{name}").text.partition("\n")[2])
            found[manifest["kind"]].append(manifest["key"])
    return found


def test_commands_of_several_machines_share_what_each_of_them_makes(
    machine: Machine, s3: S3Server, tmp_path: Path
) -> None:
    planner, first, second = machine("planner"), machine("first"), machine("second")
    status, out, err = run(planner, "plan", "fashion", "--profile", "pruned", "--json")
    assert status == 0, err
    (dense,) = kinds(s3, tmp_path.name)["dense"]

    both = [start(each, "compress", "fashion", "--profile", "small", "--json") for each in (first, second)]
    answers = []
    for process in both:
        status, out, err = ended(process)
        assert status == 0, err
        answers.append(json.loads(out))
    assert sorted(answer["outcome"] for answer in answers) == ["built", "cached"]
    keys = {Path(answer["artifact"]).name for answer in answers}
    assert kinds(s3, tmp_path.name) == {"dense": [dense], "tier": list(keys)}
    # Neither imported the model again.
    assert len(s3.objects(f"{tmp_path.name}/imports/")) == 1

    (tier,) = keys
    asking, leaving = machine("asking"), machine("leaving", models={"fashion": FASHION | {"tiers": ["dense"]}})
    assert run(leaving, "cache", "shared", "gc")[1].splitlines()[0].startswith("0 artifacts")
    status, out, err = run(leaving, "cache", "shared", "gc", "--days", "0")
    assert status == 0, err
    assert f"would remove artifact  {tier}  fashion  quantize" in out
    assert dense not in out
    status, out, _ = run(leaving, "cache", "shared", "gc", "--days", "0", "--yes", "--config", str(asking), "--json")
    assert (status, json.loads(out)["removed"]) == (0, [])
    status, out, _ = run(leaving, "cache", "shared", "gc", "--days", "0", "--yes", "--json")
    assert [one["name"] for one in json.loads(out)["removed"]] == [tier]
    assert kinds(s3, tmp_path.name) == {"dense": [dense], "tier": []}
    # What a machine has a copy of goes on there.
    answer = json.loads(run(first, "compress", "fashion", "--profile", "small", "--json")[1])
    assert answer["outcome"] == "cached"


def test_model_of_the_repository_keeps_its_artifacts_and_one_that_cannot_be_read_stops_everything(
    machine: Machine, s3: S3Server, tmp_path: Path
) -> None:
    config = machine("one")
    folder = config.parent / "models" / "fashion"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes((config.parent / "fashion.onnx").read_bytes())
    # What is known as a dense model's source has its preprocessing with it.
    of_folder = {"tiers": ["dense"], "preprocessing": FASHION["preprocessing"]}
    (folder / "serveprune.yaml").write_text(yaml.safe_dump(of_folder))
    # The same graph under both names.
    status, _, err = run(config, "plan", "fashion", "--profile", "pruned")
    assert status == 0, err
    document = yaml.safe_load(config.read_text()) | {"models": {}, "repository": {"mode": "poll"}}
    config.write_text(yaml.safe_dump(document))
    arguments = ("cache", "shared", "gc", "--days", "0")
    assert "0 artifacts" in run(config, *arguments)[1]
    (folder / "model.onnx").unlink()
    status, _, err = run(config, *arguments, "--yes")
    assert status == 2
    assert "model fashion: expected model.onnx" in err
    assert len(kinds(s3, tmp_path.name)["dense"]) == 1
    folder.rename(tmp_path / "elsewhere")
    assert "1 artifacts" in run(config, *arguments)[1]


def test_configs_over_different_stores_and_over_a_folder_are_refused(machine: Machine, tmp_path: Path) -> None:
    one = machine("one")
    local = machine("local", store={"path": "store"})
    status, _, err = run(one, "cache", "shared", "gc", "--config", str(local))
    assert status == 2
    assert "expected configs with one store.path" in err
    status, _, err = run(local, "cache", "shared", "gc")
    assert status == 2
    assert "expected a URL such as s3://bucket/prefix" in err


@pytest.mark.parametrize(("command", "profile"), [("compress", "small"), ("plan", "pruned")])
def test_bucket_that_refuses_ends_a_command_at_once_with_what_is_to_be_done(
    machine: Machine, s3: S3Server, command: str, profile: str
) -> None:
    with proxied(s3.url) as proxy:
        proxy.rule = lambda method, path: Fault.DENIED
        config = machine("denied", url=proxy.url)
        status, out, _ = run(
            config, command, "fashion", "--profile", {"compress": "small", "plan": "pruned"}[command], "--json"
        )
    assert status == 2
    assert "expected the permissions that docs/shared_store.md lists" in json.loads(out)["reasons"][0]


def test_gc_says_that_the_store_is_away_and_removes_nothing(machine: Machine) -> None:
    config = machine("away", url=f"http://127.0.0.1:{free_port()}")
    status, out, err = run(config, "cache", "shared", "gc", "--yes")
    assert (status, out) == (1, "")
    assert "cannot be used now" in err
