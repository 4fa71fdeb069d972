import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from unit.graph import networks

from e2e.conftest import DemoRun
from e2e.deployment import DYNAMIC_INT8, FASHION, INT8, copy_demo_data, copy_store, minilm
from e2e.graphs import CARRIER_WIDTH, write_carrier_model
from e2e.server_process import wait_until
from e2e.torchserve.archives import archive
from e2e.torchserve.messages import image_field
from e2e.torchserve.torchserve_process import TorchServeProcess, torchserve_python, what_is_missing
from serveprune.graph.export import quiet_frameworks

EAGER = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(24, 48)
        self.head = nn.Linear(48, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.hidden(x)))
"""


@pytest.fixture(scope="package")
def python() -> Path:
    """The interpreter that TorchServe is installed for."""
    missing = what_is_missing()
    if missing is not None:
        pytest.skip(missing)
    return torchserve_python()


@pytest.fixture(scope="package")
def torchserve(python: Path, demo: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServeProcess]:
    """One server with a model in each form, for the tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("torchserve")
    artifacts = {(model, tier) for model in ("fashion", "minilm") for tier in ("dense", "int8")}
    store = copy_store(demo.store, folder / "artifacts", artifacts=artifacts)
    archive_fashion(folder, python=python, store=store, batch_size=8, batch_delay_ms=50)
    archive_carrier(folder, python=python, store=store)
    archive_text(folder, python=python, store=store)
    archive_eager(folder, python=python, store=store)
    archive_program(folder, python=python, store=store)
    with TorchServeProcess(folder) as running:
        running.wait_ready("fashion", "carrier", "minilm", "eager", "program")
        for model, request in (
            ("fashion", image_field(folder)),
            ("carrier", {"json": carrier_inputs(0)}),
            ("minilm", {"json": {"text": "a"}}),
        ):
            wait_tier(running, model, "int8", **request)
        yield running


def wait_tier(server: TorchServeProcess, model: str, tier: str, **request: Any) -> None:
    """Wait until a worker serves a tier."""

    def is_served() -> bool:
        answer = server.ask(model, headers={"x-compression-tier": tier}, **request)
        assert answer.status_code == 200, f"{answer.text}\n{server.log[-8000:]}"
        return answer.headers["x-compression-tier"] == tier

    wait_until(is_served, what=f"{model} serves {tier}")


def archive_fashion(folder: Path, *, python: Path, store: Path, **options: Any) -> None:
    """Archive the demo's image classifier: an ONNX file, and data beside it."""
    copy_demo_data(folder)
    said = {**FASHION, "store": {"path": str(store)}, "profiles": {"int8": INT8}, **options.pop("said", {})}
    files = [folder / name for name in ("fashion.onnx", "fashion_calibration.npz", "fashion_evaluation.npz")]
    archive(folder / "store", "fashion", python=python, said=said, files=files, **options)


def archive_carrier(folder: Path, *, python: Path, store: Path) -> None:
    """Archive a network whose answers say whose they are, as the archive's weights."""
    write_carrier_model(folder / "carrier.onnx")
    random = np.random.default_rng(3)
    numbers, rows = np.arange(64, dtype=np.int64)[:, np.newaxis], random.normal(size=(64, CARRIER_WIDTH))
    np.savez(folder / "samples.npz", id=numbers, x=rows.astype(np.float32))
    said = {
        "store": {"path": str(store)},
        "profiles": {"int8": DYNAMIC_INT8},
        "tiers": ["dense", "int8"],
        "evaluation": {"file": "samples.npz"},
    }
    archive(
        folder / "store",
        "carrier",
        python=python,
        said=said,
        serialized_file=folder / "carrier.onnx",
        files=[folder / "samples.npz"],
        batch_size=16,
        batch_delay_ms=100,
    )


def carrier_inputs(number: int) -> dict[str, Any]:
    """Return a row for the carrier in JSON, without the axis of rows."""
    return {"id": [number], "x": [number / 100] * CARRIER_WIDTH}


def archive_text(folder: Path, *, python: Path, store: Path) -> None:
    """Archive the demo's sentence encoder: a folder as Hugging Face has it."""
    said = dict(minilm())
    # Of a folder the archiver takes what is in it; so this one keeps its name, and nothing else is in it.
    shutil.copytree(said["source"]["huggingface"], folder / "text" / "encoder")
    said["source"] = {**said["source"], "huggingface": "encoder"}
    said |= {"store": {"path": str(store)}, "profiles": {"int8": INT8}}
    files = [folder / "text", *(folder / said[role]["file"] for role in ("calibration", "evaluation"))]
    archive(folder / "store", "minilm", python=python, said=said, files=files)


def archive_eager(folder: Path, *, python: Path, store: Path) -> None:
    """Archive a network of torch: its class, and its state dict."""
    (folder / "model.py").write_text(EAGER, encoding="utf-8")
    torch.save(networks.perceptron().state_dict(), folder / "eager.pt")
    said = {
        "store": {"path": str(store)},
        "source": {"torch": "model:Net", "weights": "eager.pt", "inputs": [{"name": "x", "shape": ["batch", 24]}]},
    }
    archive(
        folder / "store",
        "eager",
        python=python,
        said=said,
        serialized_file=folder / "eager.pt",
        model_file=folder / "model.py",
    )


def archive_program(folder: Path, *, python: Path, store: Path) -> None:
    """Archive an exported program, which has two outputs."""
    with quiet_frameworks():
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(
            networks.convolutional().eval(), (torch.randn(2, 3, 16, 16),), dynamic_shapes=({0: batch},)
        )
        torch.export.save(program, folder / "program.pt2")
    said = {"store": {"path": str(store)}}
    archive(folder / "store", "program", python=python, said=said, serialized_file=folder / "program.pt2")
