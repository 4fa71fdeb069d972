import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from unit.graph import networks

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.config.model import ModelConfig
from serveprune.errors import InvalidArgument
from serveprune.graph.export import quiet_frameworks
from serveprune.graph.importing import ImportedGraph, import_model
from serveprune.graph.interface import source_inputs


def _import(path: Path, folder: Path) -> ImportedGraph:
    folder.mkdir(exist_ok=True)
    model = ModelConfig.model_validate({"source": {"pt2": str(path)}})
    assert source_inputs(model) is None
    return import_model(model, folder=folder, progress=lambda stage, fraction: None)


def _save(path: Path, *, batch: Any = None, size: Any = None) -> Path:
    dynamic = {axis: dim for axis, dim in ((0, batch), (2, size)) if dim is not None}
    with quiet_frameworks():
        program = torch.export.export(
            networks.convolutional().eval(), (torch.randn(2, 3, 16, 16),), dynamic_shapes=(dynamic,)
        )
        torch.export.save(program, path)
    return path


def _rewrite(path: Path, changes: dict[str, Callable[[bytes], bytes]], added: dict[str, bytes] | None = None) -> None:
    """Change records of an archive; names are relative to its root folder."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(records)).partition("/")[0]
    for name, change in changes.items():
        records[f"{root}/{name}"] = change(records[f"{root}/{name}"])
    records.update({f"{root}/{name}": content for name, content in (added or {}).items()})
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)


class _Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_dynamic_axes_are_kept_when_a_program_is_imported(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.pt2", batch=torch.export.Dim("batch"), size=torch.export.Dim("height", min=4, max=64))
    imported = _import(path, tmp_path / "out")
    assert [(record.name, record.shape) for record in imported.graph.inputs] == [("image", (-1, 3, -1, 16))]
    assert [record.name for record in imported.graph.outputs] == ["output", "output_1"]
    assert imported.parity_max_abs_error is not None
    assert imported.parity_max_abs_error < 1e-5
    x = np.random.default_rng(1).standard_normal((5, 3, 40, 16)).astype(np.float32)
    with torch.no_grad():
        expected = networks.convolutional().eval()(torch.from_numpy(x))[0].numpy()
    result = OnnxRuntimeBackend().load(tmp_path / "out" / "model.onnx").run({"image": x})[0]
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_fixed_batch_axis_is_noted_when_the_program_has_one(tmp_path: Path) -> None:
    imported = _import(_save(tmp_path / "m.pt2"), tmp_path / "out")
    assert imported.graph.inputs[0].shape == (2, 3, 16, 16)
    assert any("requests cannot be batched" in note for note in imported.notes)


def test_example_inputs_with_code_are_refused_and_do_not_run(tmp_path: Path) -> None:
    path, marker = _save(tmp_path / "m.pt2"), tmp_path / "ran"
    _rewrite(path, {"data/sample_inputs/model.pt": lambda _: _pickled(((_Malicious(marker),), {}))})
    with pytest.raises(InvalidArgument, match=r"m\.pt2"):
        _import(path, tmp_path / "out")
    assert not marker.exists()
    with quiet_frameworks():
        torch.export.load(path)
    assert marker.exists(), "torch itself must run it, or this test shows nothing"


def test_pickled_weights_are_refused_when_they_hold_code(tmp_path: Path) -> None:
    path, marker = _save(tmp_path / "m.pt2"), tmp_path / "ran"

    def use_pickle(content: bytes) -> bytes:
        config = json.loads(content)
        for entry in config["config"].values():
            entry["use_pickle"] = True
        return json.dumps(config).encode()

    with zipfile.ZipFile(path) as archive:
        weights = [name.partition("/")[2] for name in archive.namelist() if "/data/weights/weight_" in name]
    changes: dict[str, Callable[[bytes], bytes]] = dict.fromkeys(weights, lambda _: _pickled(_Malicious(marker)))
    _rewrite(path, {"data/weights/model_weights_config.json": use_pickle, **changes})
    with pytest.raises(InvalidArgument, match=r"m\.pt2"):
        _import(path, tmp_path / "out")
    assert not marker.exists()


def test_size_expression_is_refused_and_does_not_run_when_it_is_code(tmp_path: Path) -> None:
    path, marker = _save(tmp_path / "m.pt2", batch=torch.export.Dim("batch")), tmp_path / "ran"
    code = f"__import__('os').mkdir('{marker}')"
    _rewrite(path, {"models/model.json": lambda content: _with_expression(content, code)})
    with pytest.raises(InvalidArgument, match=r"m\.pt2: .* is no plain size expression"):
        _import(path, tmp_path / "out")
    assert not marker.exists()


def _with_expression(content: bytes, code: str) -> bytes:
    program = json.loads(content)

    def replace(value: Any) -> None:
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            replace(item)
        if isinstance(value, dict) and "expr_str" in value:
            value["expr_str"] = code

    replace(program)
    return json.dumps(program).encode()


def test_guard_does_not_run_when_it_is_code(tmp_path: Path) -> None:
    path, marker = _save(tmp_path / "m.pt2", batch=torch.export.Dim("batch")), tmp_path / "ran"

    def with_guard(content: bytes) -> bytes:
        program = json.loads(content)
        program["guards_code"] = [f"__import__('os').mkdir('{marker}') is None"]
        return json.dumps(program).encode()

    _rewrite(path, {"models/model.json": with_guard})
    _import(path, tmp_path / "out")
    assert not marker.exists()


def test_archive_is_refused_when_it_holds_a_compiled_library(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.pt2")
    _rewrite(path, {}, {"data/aotinductor/model/wrapper.so": b"\x7fELF"})
    with pytest.raises(InvalidArgument, match="expected one exported program, got 'data/aotinductor"):
        _import(path, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x05\x06" + b"\0" * 18])
def test_file_is_refused_when_it_is_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"m\.pt2: expected a program saved with torch\.export\.save"):
        _import(path, tmp_path / "out")


def test_archive_is_refused_when_it_is_truncated(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.pt2")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InvalidArgument, match=r"m\.pt2"):
        _import(path, tmp_path / "out")
