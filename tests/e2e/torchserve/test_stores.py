"""One artifact store under TorchServe and serveprune's own server: what one builds the other serves, unchanged."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2e.conftest import Serve
from e2e.deployment import INT8, copy_demo_data, fashion_images, minilm, tier_of, write_config, write_fashion
from e2e.server_process import wait_until
from e2e.torchserve.hosted import HostedTorchServe, command, package


def manifests(store: Path) -> dict[str, tuple[str, str]]:
    """Return which tier of which model each artifact is, and when it was made."""
    found = {}
    for file in (store / "artifacts").glob("*/manifest.json"):
        document = json.loads(file.read_text(encoding="utf-8"))
        found[file.parent.name] = (f"{document['model']}@{tier_of(document)}", document["created"])
    return found


def inputs_of(folder: Path) -> dict[str, Any]:
    return {"image": fashion_images(folder, 2).tolist()}


def test_store_that_torchserve_filled_is_served_by_the_other_server_and_by_archives_that_refer_to_it(
    serve: Serve, tmp_path: Path
) -> None:
    config = write_fashion(tmp_path)
    package(config, "fashion")
    with HostedTorchServe(tmp_path) as hosted:
        hosted.wait_ready()
        wait_until(
            lambda: _served_tier(hosted, "fashion", inputs_of(tmp_path)) == "int8", what="the worker has built the tier"
        )
        expected = hosted.ask("fashion", tier="int8", json=inputs_of(tmp_path)).json()["logits"]
    stored = manifests(tmp_path / "store")
    assert sorted(name for name, _ in stored.values()) == ["fashion@dense", "fashion@int8"]

    server = serve(config).wait_open().wait_ready("fashion@int8")
    answer = server.http.post("/v2/models/fashion@int8/infer", json=_request(tmp_path))
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), expected, rtol=1e-4, atol=1e-5)
    server.end()
    assert "building" not in server.log
    assert manifests(tmp_path / "store") == stored

    package(config, "fashion", "--by-reference", "--force")
    # Of the model itself the archive has nothing, and nothing is left outside of the store.
    with zipfile.ZipFile(tmp_path / "models" / "fashion.mar") as archive:
        assert [name for name in archive.namelist() if name.endswith(".onnx")] == []
    (tmp_path / "fashion.onnx").unlink()
    log = tmp_path / "ran" / "logs" / "workers.log"
    written_before = log.stat().st_size
    with HostedTorchServe(tmp_path) as hosted:
        hosted.wait_ready()
        wait_until(
            lambda: _served_tier(hosted, "fashion", inputs_of(tmp_path)) == "int8", what="the worker has found the tier"
        )
        again = hosted.ask("fashion", tier="int8", json=inputs_of(tmp_path)).json()["logits"]
        np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-5)
        written = log.read_bytes()[written_before:]
    assert b"fashion int8: ready" in written
    assert b"building" not in written
    assert manifests(tmp_path / "store") == stored


def test_folder_of_hugging_face_is_served_from_the_store_alone(demo_of_minilm: Path, tmp_path: Path) -> None:
    package(demo_of_minilm, "minilm", "--by-reference")
    stored = manifests(demo_of_minilm.parent / "store")
    with HostedTorchServe(demo_of_minilm.parent) as hosted:
        hosted.wait_ready()
        text = {"text": "a gripping film"}
        wait_until(lambda: _served_tier(hosted, "minilm", text) == "int8", what="the worker has found the tier")
        for tier in ("dense", "int8"):
            answer = hosted.ask("minilm", tier=tier, json={**text, "strict_tier": True})
            assert answer.status_code == 200, answer.text
            (vectors,) = answer.json().values()
            assert np.linalg.norm(vectors) == pytest.approx(1.0, abs=1e-3)
    assert manifests(demo_of_minilm.parent / "store") == stored
    archive = demo_of_minilm.parent / "models" / "minilm.mar"
    assert archive.stat().st_size < 2**20


def test_archive_that_refers_to_a_store_without_the_model_is_not_written(tmp_path: Path) -> None:
    config = write_fashion(tmp_path)
    finished = command("package", "--config", config, "--by-reference", "--out", "models", folder=tmp_path)
    assert finished.returncode == 2
    assert "--by-reference: expected model fashion in the store" in finished.stderr
    assert not (tmp_path / "models" / "fashion.mar").exists()


def test_reason_is_told_when_the_store_has_lost_the_model(serve: Serve, tmp_path: Path) -> None:
    config = write_fashion(tmp_path)
    serve(config).wait_open().wait_ready("fashion").end()
    package(config, "fashion", "--by-reference")
    (tmp_path / "store").rename(tmp_path / "gone")
    with HostedTorchServe(tmp_path) as hosted:
        assert hosted.process.wait(300) == 2
        assert "source.artifact: the store has no artifact" in hosted.log


@pytest.fixture
def demo_of_minilm(demo: Any, tmp_path: Path) -> Path:
    """The config of the demo's sentence encoder, over a copy of the demo's store."""
    from e2e.deployment import copy_store

    copy_demo_data(tmp_path)
    copy_store(demo.store, tmp_path / "store", artifacts={("minilm", "dense"), ("minilm", "int8")})
    return write_config(tmp_path, models={"minilm": minilm()}, profiles={"int8": INT8})


def _request(folder: Path) -> dict[str, Any]:
    image = fashion_images(folder, 2)
    return {
        "inputs": [{"name": "image", "datatype": "FP32", "shape": list(image.shape), "data": image.ravel().tolist()}]
    }


def _served_tier(hosted: HostedTorchServe, model: str, inputs: dict[str, Any]) -> str:
    answer = hosted.ask(model, tier="int8", json=inputs)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-compression-tier"]
