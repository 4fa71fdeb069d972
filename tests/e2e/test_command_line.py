"""The commands, as processes."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2e.deployment import artifact_folder, copy_demo_data, fashion_images, write_config, write_fashion
from e2e.server_process import COMMAND, ServerProcess

TEXT = "a gripping, funny and beautifully acted film"


def run(*words: object, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    command = [*COMMAND, *map(str, words)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=200)


def result(*words: object, stdin: str = "") -> str:
    finished = run(*words, stdin=stdin)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def infer(server: ServerProcess, *words: object, stdin: str = "") -> Any:
    return json.loads(result("infer", *words, "--url", server.url, "--json", stdin=stdin))


def test_tiers_are_shown_as_a_table_and_as_json(server: ServerProcess) -> None:
    table = result("tiers", "--url", server.url)
    assert "cosine 0.99" in table
    assert "top1_agreement" in table
    described = json.loads(result("tiers", "fashion", "--url", server.url, "--json"))
    assert described["name"] == "fashion"
    assert [tier["tier"] for tier in described["tiers"]] == ["dense", "int8"]
    models = json.loads(result("tiers", "--url", server.url, "--json"))
    assert {"minilm", "fashion"} <= {model["name"] for model in models}


def test_infer_sends_text(server: ServerProcess) -> None:
    answer = infer(server, "minilm@int8", "--text", TEXT, "--text", "a dull film")
    assert answer["tier"] == "int8"
    assert answer["outputs"][0]["shape"] == [2, 384]
    lines = infer(server, "minilm@int8", "--text", "-", stdin=f"{TEXT}\na dull film\n")
    assert np.allclose(lines["outputs"][0]["data"], answer["outputs"][0]["data"])
    shown = result("infer", "minilm", "--text", TEXT, "--url", server.url)
    assert shown.startswith("tier dense (default)")
    assert "FP32 [1, 384]" in shown


def test_infer_sends_pictures_and_arrays_over_both_protocols(server: ServerProcess, tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", image=fashion_images(server.folder, 2))
    for source, rows in (
        (("--image", server.folder / "boot.png"), 1),
        (("--input", tmp_path / "images.npz"), 2),
    ):
        over_http = infer(server, "fashion", *source, "--tier", "int8", "--strict")
        over_grpc = infer(server, "fashion@int8", *source, "--grpc", server.endpoints["grpc"])
        assert over_http["tier"] == over_grpc["tier"] == "int8"
        assert over_http["outputs"][0]["shape"] == [rows, 10]
        assert np.allclose(over_http["outputs"][0]["data"], over_grpc["outputs"][0]["data"], atol=1e-5)


def test_cache_is_listed_verified_and_kept_within_its_bound(fashion_store: Path, tmp_path: Path) -> None:
    config = write_fashion(tmp_path, stored=fashion_store)
    entries = json.loads(result("cache", "ls", "--config", config, "--json"))
    assert {(entry["model"], entry["kind"]) for entry in entries} == {("fashion", "dense"), ("fashion", "tier")}
    assert "2 artifacts" in result("cache", "ls", "--store", tmp_path / "store")
    assert json.loads(result("cache", "verify", "--config", config, "--json"))["ok"] is True

    damaged = artifact_folder(tmp_path / "store", model="fashion", tier="int8")
    with (damaged / "model.onnx").open("r+b") as graph:
        graph.seek(1000)
        graph.write(b"tampered")
    verified = run("cache", "verify", "--config", config)
    assert verified.returncode == 1
    assert damaged.name in verified.stdout
    assert run("cache", "verify", "--config", config).returncode == 0

    removed = json.loads(result("cache", "gc", "--config", config, "--max-bytes", "1KB", "--json"))
    assert removed["freed_bytes"] > 0
    assert json.loads(result("cache", "ls", "--config", config, "--json")) == []


def test_artifacts_of_a_running_server_are_not_evicted(server: ServerProcess) -> None:
    before = json.loads(result("cache", "ls", "--store", server.folder / "store", "--json"))

    result("cache", "gc", "--store", server.folder / "store", "--max-bytes", "1KB")

    loaded = {entry["key"] for entry in before if entry["leased"]}
    left = {entry["key"] for entry in json.loads(result("cache", "ls", "--store", server.folder / "store", "--json"))}
    assert loaded
    assert loaded <= left


def test_config_is_checked_and_its_schema_printed(fashion_store: Path, tmp_path: Path) -> None:
    config = write_fashion(tmp_path)
    result("config", "check", config)
    assert "models" in json.loads(result("config", "schema"))["properties"]


def test_configs_are_compared_and_the_exit_code_says_whether_they_differ(tmp_path: Path) -> None:
    copy_demo_data(tmp_path)
    new = write_config(tmp_path, deployments={"fashion": {"default_tier": "int8"}}).rename(tmp_path / "new.yaml")
    old = write_config(tmp_path)

    assert result("config", "diff", old, old) == "no difference\n"
    differs = run("config", "diff", old, new)
    assert differs.returncode == 1
    assert differs.stderr == ""
    assert "  ~  at once  default_tier: dense -> int8" in differs.stdout.splitlines()
    piped = run("config", "diff", "-", new, "--json", stdin=old.read_text())
    assert piped.returncode == 1
    (change,) = json.loads(piped.stdout)["changes"]
    assert (change["path"], change["old"], change["new"]) == ("deployments.fashion.default_tier", "dense", "int8")


def test_serve_check_answers_with_every_tier_and_stops(fashion_store: Path, tmp_path: Path) -> None:
    config = write_fashion(tmp_path, stored=fashion_store, server={"http": "127.0.0.1:1"})

    checked = run("serve", config, "--check")

    # Free ports are taken whatever the config says, so the forbidden port 1 does no harm.
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "check passed" in checked.stdout


def test_compress_reports_what_it_found_in_the_store(fashion_store: Path, tmp_path: Path) -> None:
    config = write_fashion(tmp_path, stored=fashion_store)

    report = json.loads(result("compress", "fashion", "--profile", "int8", "--config", config, "--json"))

    assert report["outcome"] == "cached"
    assert report["quality"]["top1_agreement"] >= 0.97
    assert report["bytes"]["tier"] < report["bytes"]["dense"]
    assert Path(report["artifact"], "model.onnx").is_file()


def test_all_problems_of_a_config_are_told_at_once(tmp_path: Path) -> None:
    models = {
        "fashion": {
            "source": {"onnx": "missing.onnx"},
            "tiers": ["dense", "int4"],
            "calibration": {"file": "missing.npz"},
            "color": "blue",
        }
    }
    config = write_config(tmp_path, models=models)

    for words in (("serve", config), ("config", "check", config), ("config", "diff", config, config)):
        refused = run(*words)
        assert refused.returncode == 2
        for problem in ("missing.onnx", "missing.npz", "int4", "color"):
            assert problem in refused.stdout + refused.stderr
        assert "Traceback" not in refused.stderr


def test_data_that_do_not_fit_the_graph_are_told_before_anything_starts(tmp_path: Path) -> None:
    config = write_fashion(tmp_path)
    np.savez(tmp_path / "fashion_calibration.npz", image=np.zeros((4, 3, 28, 28), dtype=np.float32))

    refused = run("serve", config)

    assert refused.returncode == 2
    assert "models.fashion.calibration" in refused.stderr
    assert "fashion_calibration.npz" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("words", "code", "mention"),
    [
        (("serve", "nowhere.yaml"), 2, "nowhere.yaml"),
        (("compress", "fashion", "--profile", "int8", "--config", "nowhere.yaml"), 2, "nowhere.yaml"),
        (("cache", "ls", "--store", "nowhere"), 2, "nowhere"),
        (("config", "diff", "nowhere.yaml", "elsewhere.yaml"), 2, "nowhere.yaml"),
        (("config", "diff", "nowhere.yaml", "elsewhere.yaml"), 2, "elsewhere.yaml"),
        (("config", "diff", "-", "-"), 2, "standard input"),
        (("infer", "fashion"), 2, "exactly one of"),
        (("infer", "fashion", "--image", "nowhere.png"), 2, "nowhere.png"),
        (("infer", "fashion", "--input", "nowhere.npz"), 2, "nowhere.npz"),
        (("infer", "fashion", "--text", "x", "--url", "ftp://x"), 2, "ftp://x"),
        (("infer", "fashion", "--text", "x", "--url", "http://127.0.0.1:1"), 1, "is the server running?"),
        (("infer", "fashion", "--text", "x", "--grpc", "127.0.0.1:1"), 1, "127.0.0.1:1"),
        (("tiers", "--url", "http://127.0.0.1:1"), 1, "is the server running?"),
        (("frobnicate",), 2, "frobnicate"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_mistake_ends_in_one_clear_message(words: tuple[str, ...], code: int, mention: str) -> None:
    finished = run(*words)

    assert finished.returncode == code, finished.stdout + finished.stderr
    assert mention in finished.stderr
    assert "Traceback" not in finished.stderr
    assert finished.stdout == ""


def test_error_of_the_server_is_shown_as_it_said_it(server: ServerProcess) -> None:
    for protocol in (("--url", server.url), ("--grpc", server.endpoints["grpc"])):
        refused = run("infer", "nobody", "--text", "x", *protocol)
        assert refused.returncode == 1
        assert "no model named 'nobody' is registered" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_module_and_script_are_the_same_command() -> None:
    script = shutil.which("serveprune", path=str(Path(COMMAND[0]).parent))
    assert script is not None
    by_script = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=100)
    assert by_script.stdout == result("--version")


def test_endpoints_file_that_cannot_be_written_is_told_and_nothing_is_left_running(
    fashion_store: Path, tmp_path: Path
) -> None:
    addresses = dict.fromkeys(("http", "grpc", "metrics"), "127.0.0.1:0")
    config = write_fashion(tmp_path, stored=fashion_store, server=addresses)

    refused = run("serve", config, "--endpoints-file", tmp_path / "nowhere" / "endpoints.json")

    assert refused.returncode == 2
    assert "endpoints.json: cannot be written: No such file or directory" in refused.stderr
    assert "Traceback" not in refused.stderr
