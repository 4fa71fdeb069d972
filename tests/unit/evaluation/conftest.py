from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend, OnnxRuntimeSession

Load = Callable[[onnx.ModelProto], OnnxRuntimeSession]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a graph in ONNX Runtime."""

    def from_model(model: onnx.ModelProto) -> OnnxRuntimeSession:
        onnx.checker.check_model(model)
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        return OnnxRuntimeBackend().load(path)

    return from_model
