from pathlib import Path

import numpy as np
import pytest
from unit.graph.graph_files import linear_model, save

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.errors import BuildFailed
from serveprune.graph.parity import Reference, measure_parity
from serveprune.oip.tensor import Array

_WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)
_X = np.array([[1, 2, 3, 4], [0.5, 0, 0, -1]], np.float32)


def _parity(tmp_path: Path, output: Array, *, x: Array = _X) -> float:
    session = OnnxRuntimeBackend().load(save(linear_model(), tmp_path / "m.onnx"))
    return measure_parity(session, [Reference({"x": x}, [output])], label="source")


def test_parity_is_the_largest_absolute_error_when_outputs_are_close(tmp_path: Path) -> None:
    expected = (_X @ _WEIGHT).astype(np.float32)  # the largest value is 80, so 0.08 is the bound
    expected[1, 2] += 0.0625
    assert _parity(tmp_path, expected) == pytest.approx(0.0625, abs=1e-5)


def test_parity_fails_when_the_error_is_beyond_a_thousandth_of_the_scale(tmp_path: Path) -> None:
    expected = (_X @ _WEIGHT).astype(np.float32)
    expected[1, 2] += 0.1
    with pytest.raises(BuildFailed, match=r"source: output 'y' for x \[2, 4\]: .* differs from the source by 0\.1"):
        _parity(tmp_path, expected)


def test_parity_fails_when_only_one_side_is_nan(tmp_path: Path) -> None:
    expected = (_X @ _WEIGHT).astype(np.float32)
    expected[0, 0] = np.nan
    with pytest.raises(BuildFailed, match="finite"):
        _parity(tmp_path, expected)


def test_parity_fails_when_the_graph_does_not_take_the_input(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="does not take"):
        _parity(tmp_path, np.zeros((2, 3), np.float32), x=np.zeros((2, 5), np.float32))


def test_parity_fails_when_shapes_differ(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match=r"gives shape \[2, 4\], the exported graph \[2, 3\]"):
        _parity(tmp_path, np.zeros((2, 4), np.float32))
