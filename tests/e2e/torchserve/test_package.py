import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
import yaml

from e2e.conftest import DemoRun
from e2e.deployment import FASHION, INT8, fashion_images, minilm, write_config, write_fashion
from e2e.torchserve.hosted import HostedTorchServe, command, package

X = np.random.default_rng(5).standard_normal((2, 24)).astype(np.float32)
FACTORY = """\
import sizes
from torch import nn


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(24, sizes.HIDDEN), nn.Tanh(), nn.Linear(sizes.HIDDEN, 5))
"""


@pytest.fixture(scope="module")
def folder(demo: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of each form, its config, and the artifacts that serveprune's own server made of two."""
    folder = tmp_path_factory.mktemp("packaged")
    (folder / "sizes.py").write_text("HIDDEN = 48\n")
    (folder / "network.py").write_text(FACTORY)
    safetensors.torch.save_file(_network().state_dict(), folder / "eager.safetensors")
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(_network(), (torch.randn(2, 24),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "program.pt2")
    inputs = [{"name": "x", "shape": ["batch", 24]}]
    write_fashion(
        folder,
        stored=demo.store,
        models={
            "fashion": FASHION,
            "minilm": minilm(),
            "eager": {"source": {"torch": "network:make", "weights": "eager.safetensors", "inputs": inputs}},
            "program": {"source": {"pt2": "program.pt2"}},
        },
        profiles={"int8": INT8},
    )
    return folder


def _network() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(24, 48), torch.nn.Tanh(), torch.nn.Linear(48, 5)).eval()


@pytest.fixture(scope="module")
def hosted(folder: Path) -> Iterator[HostedTorchServe]:
    """A TorchServe over archives of all of them; what they were made of is gone."""
    for model in ("fashion", "minilm", "eager", "program"):
        package(folder / "serveprune.yaml", model)
    for file in ("fashion.onnx", "network.py", "sizes.py", "eager.safetensors", "program.pt2"):
        (folder / file).rename(folder / f"{file}.gone")
    with HostedTorchServe(folder) as running:
        yield running.wait_ready()


def _built(store: Path) -> set[str]:
    return {path.parent.name for path in (store / "artifacts").glob("*/manifest.json")}


def test_tiers_that_serveprunes_own_server_made_are_used_unchanged(
    hosted: HostedTorchServe, demo: DemoRun, folder: Path
) -> None:
    before = _built(demo.store)
    images = fashion_images(folder, 2)
    for tier in ("dense", "int8"):
        answer = hosted.ask("fashion", tier=tier, json={"image": images.tolist()})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-compression-tier"] == tier
        (graph,) = (
            path.parent / "model.onnx"
            for path in (folder / "store" / "artifacts").glob("*/manifest.json")
            if _is(path, model="fashion", passes=0 if tier == "dense" else 1)
        )
        session = onnxruntime.InferenceSession(str(graph))
        (expected,) = session.run(None, {session.get_inputs()[0].name: images})
        (got,) = answer.json().values()
        np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-4, atol=1e-5)
    made = [path for path in (folder / "store" / "artifacts").glob("*/manifest.json") if path.parent.name not in before]
    assert [path for path in made if _model(path) in ("fashion", "minilm")] == []
    assert before <= _built(folder / "store")


def _is(manifest: Path, *, model: str, passes: int) -> bool:
    document = json.loads(manifest.read_text(encoding="utf-8"))
    names = [step["name"] for step in document["passes"]]
    return bool(document["model"] == model and names == ["quantize"][:passes])


def _model(manifest: Path) -> str:
    return str(json.loads(manifest.read_text(encoding="utf-8"))["model"])


def test_folder_of_hugging_face_is_served_with_its_tokenizer(hosted: HostedTorchServe) -> None:
    answer = hosted.ask("minilm", tier="int8", json={"text": "a gripping film"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-compression-tier"] == "int8"
    (vectors,) = answer.json().values()
    assert np.linalg.norm(vectors) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("model", "name"), [("eager", "x"), ("program", "input")])
def test_models_of_torch_answer_as_torch_does(hosted: HostedTorchServe, model: str, name: str) -> None:
    answer = hosted.ask(model, json={name: X.tolist()})
    assert answer.status_code == 200, answer.text
    with torch.no_grad():
        expected = _network()(torch.from_numpy(X)).numpy()
    (got,) = answer.json().values()
    np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-4, atol=1e-5)


def test_archive_holds_files_config_handler_and_manifest(tmp_path: Path) -> None:
    _write_program(tmp_path)
    package(tmp_path / "serveprune.yaml", "m", "--batch-size", "4")

    assert [path.name for path in (tmp_path / "models").iterdir()] == ["m.mar"]
    with zipfile.ZipFile(tmp_path / "models" / "m.mar") as opened:
        assert opened.read("model-files/source/m.pt2") == b"program"
        manifest = json.loads(opened.read("MAR-INF/MANIFEST.json"))["model"]
        settings = yaml.safe_load(opened.read(manifest["configFile"]))
        handler = opened.read(manifest["handler"]).decode()
    assert (manifest["modelName"], manifest["modelVersion"]) == ("m", "3")
    assert settings["batchSize"] == 4
    assert settings["handler"]["serveprune"]["source"] == {"pt2": "model-files/source/m.pt2"}
    assert settings["handler"]["serveprune"]["store"] == {"path": str(tmp_path / "store")}
    assert "serveprune.handlers.torchserve.handler" in handler


def test_archive_that_exists_is_replaced_only_when_that_is_said(tmp_path: Path) -> None:
    _write_program(tmp_path)
    (tmp_path / "m.mar").write_bytes(b"another")
    refused = command("package", "--out", ".", folder=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == "error: m.mar exists already; --force replaces it\n"
    assert (tmp_path / "m.mar").read_bytes() == b"another"

    assert command("package", "--out", ".", "--force", folder=tmp_path).returncode == 0
    assert zipfile.is_zipfile(tmp_path / "m.mar")


def _write_program(folder: Path) -> None:
    (folder / "m.pt2").write_bytes(b"program")
    write_config(folder, models={"m": {"source": {"pt2": "m.pt2"}, "version": "3"}})


def test_extra_is_named_when_the_archiver_is_missing(tmp_path: Path) -> None:
    _write_program(tmp_path)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.metadata as m\n"
        "found = m.Distribution.from_name.__func__\n"
        "def from_name(cls, name):\n"
        "    if name.startswith('torch'):\n"
        "        raise m.PackageNotFoundError(name)\n"
        "    return found(cls, name)\n"
        "m.Distribution.from_name = classmethod(from_name)\n"
    )
    environment = {"PYTHONPATH": os.pathsep.join([str(hidden), str(Path(__file__).parents[3])])}
    finished = command("package", "--model", "m", folder=tmp_path, environment=environment)
    assert finished.returncode == 2
    assert finished.stderr.endswith('torch-model-archiver is not installed: pip install "serveprune[torchserve]"\n'), (
        finished.stderr
    )
