"""An installation without the compressing half serves what another environment built."""

import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from contract.grpc.messages import of_arrays

from e2e.conftest import DemoRun, Serve
from e2e.deployment import FASHION, copy_demo_data, copy_store, fashion_images, minilm, write_config, write_fashion
from e2e.server_process import COMMAND

WITHOUT_COMPRESSING_HALF = {"PYTHONPATH": str(Path(__file__).with_name("absent_packages"))}
PACKAGES = ("torch", "onnx", "onnx_ir", "onnxscript", "transformers", "safetensors")


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **WITHOUT_COMPRESSING_HALF}
    return subprocess.run(list(words), capture_output=True, text=True, timeout=100, env=environment)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_absent_in_the_environment_of_these_tests(package: str) -> None:
    code = (
        "import importlib.util, importlib.metadata\n"
        f"assert importlib.util.find_spec({package!r}) is None\n"
        f"try: importlib.metadata.version({package!r})\n"
        "except importlib.metadata.PackageNotFoundError: pass\n"
        f"else: raise SystemExit('its metadata is there')\n"
        f"import {package}"
    )
    assert f"ModuleNotFoundError: No module named '{package}'" in run(sys.executable, "-c", code).stderr


def test_all_tiers_are_served_from_a_store_that_another_environment_built(
    serve: Serve, demo: DemoRun, tmp_path: Path
) -> None:
    copy_demo_data(tmp_path)
    everything = {(model, tier) for model in ("minilm", "fashion") for tier in ("dense", "int8")}
    copy_store(demo.store, tmp_path / "store", artifacts=everything)
    config = write_config(tmp_path, models={"minilm": minilm(), "fashion": FASHION})

    server = serve(config, environment=WITHOUT_COMPRESSING_HALF).wait_open().wait_ready("minilm", "fashion")

    for model, content_type, body in (
        ("minilm", "text/plain", b"a gripping, funny and beautifully acted film"),
        ("fashion", "image/png", (tmp_path / "boot.png").read_bytes()),
    ):
        for tier, standing in server.tiers(model).items():
            answer = server.http.post(
                f"/v2/models/{model}@{tier}/infer", content=body, headers={"Content-Type": content_type}
            )
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-compression-tier"] == tier
            assert standing["built_here"] is False
    assert server.metric("serveprune_builds_total") == 0
    assert "in another environment" in server.log


def test_artifact_that_is_missing_fails_its_tier_alone_and_names_the_extra(
    serve: Serve, demo: DemoRun, tmp_path: Path
) -> None:
    copy_demo_data(tmp_path)
    copy_store(demo.store, tmp_path / "store", artifacts={("fashion", "dense")})
    config = write_config(tmp_path, models={"minilm": minilm(), "fashion": FASHION})

    server = serve(config, environment=WITHOUT_COMPRESSING_HALF).wait_open()

    for model, tier in (("minilm", "dense"), ("fashion", "int8")):
        (reason,) = server.wait_state(model, tier, "failed")["reasons"]
        assert 'pip install "serveprune[compress]"' in reason
    image = fashion_images(tmp_path, 1)
    answer = server.stub.ModelInfer(of_arrays("fashion@int8", image=image))
    assert answer.parameters["tier"].string_param == "dense"
    assert server.grpc_refusal(of_arrays("minilm", image=image)).code is grpc.StatusCode.FAILED_PRECONDITION
    # What is printed is what was said: no brackets lost.
    table = run(*COMMAND, "tiers", "fashion", "--url", server.url).stdout
    assert "serveprune[compress]" in "".join(table.split())
    assert server.stop() == 0


def test_check_names_what_is_missing_and_the_extra(dense_store: Path, tmp_path: Path) -> None:
    config = write_fashion(tmp_path, stored=dense_store)

    checked = run(*COMMAND, "serve", str(config), "--check")

    assert checked.returncode == 1
    (failure,) = [line for line in checked.stdout.splitlines() if line.startswith("check failed")]
    assert "fashion@int8 is failed" in failure
    assert 'pip install "serveprune[compress]"' in failure


@pytest.mark.parametrize("command", [["cache", "ls"], ["cache", "verify"], ["cache", "gc"], ["config", "check"]])
def test_store_and_config_are_looked_after_without_the_compressing_half(
    fashion_store: Path, tmp_path: Path, command: list[str]
) -> None:
    config = write_fashion(tmp_path, stored=fashion_store)
    named = [str(config)] if command[0] == "config" else ["--config", str(config)]

    finished = run(*COMMAND, *command, *named)

    assert finished.returncode == 0, finished.stderr
