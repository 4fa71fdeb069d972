import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from unit.graph import networks

from serveprune.artifacts.digest import sha256_file
from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.config.model import ModelConfig
from serveprune.errors import BuildFailed, InvalidArgument, ServePruneError
from serveprune.graph.importing import ImportedGraph, import_model
from serveprune.graph.interface import source_inputs

_SEQUENCE = [{"name": "x", "shape": ["batch", "sequence", 4]}]
_IMAGE = [{"name": "image", "shape": ["batch", 3, "height", "width"]}]


def _config(function: str, inputs: list[dict[str, Any]], **source: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {"source": {"torch": f"unit.graph.networks:{function}", "inputs": inputs, **source}}
    )


def _import(model: ModelConfig, folder: Path) -> ImportedGraph:
    folder.mkdir(exist_ok=True)
    return import_model(model, folder=folder, progress=lambda stage, fraction: None)


def test_recurrent_network_keeps_one_lstm_node_when_it_is_imported(tmp_path: Path) -> None:
    model = _config("recurrent", _SEQUENCE)
    imported = _import(model, tmp_path)
    assert imported.graph.operators["LSTM"] == 1
    assert imported.parity_max_abs_error is not None
    assert imported.parity_max_abs_error < 1e-5
    assert tuple(record.spec for record in imported.graph.inputs) == source_inputs(model)
    assert [record.name for record in imported.graph.outputs] == ["output"]


def test_graph_equals_torch_when_sizes_are_others_than_at_export(tmp_path: Path) -> None:
    _import(_config("recurrent", _SEQUENCE), tmp_path)
    session = OnnxRuntimeBackend().load(tmp_path / "model.onnx")
    network = networks.recurrent().eval()
    for batch, length in ((1, 1), (7, 33)):
        x = np.random.default_rng(1).standard_normal((batch, length, 4)).astype(np.float32)
        with torch.no_grad():
            expected = network(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(session.run({"x": x})[0], expected, atol=1e-5)


def test_batch_normalization_is_kept_when_a_convolutional_network_is_imported(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    network = networks.convolutional()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    safetensors.torch.save_file(network.state_dict(), weights)
    model = _config("convolutional", _IMAGE, weights=str(weights), outputs=["logits", "features"])
    imported = _import(model, tmp_path / "out")
    assert imported.graph.operators["BatchNormalization"] == 1
    assert [record.name for record in imported.graph.outputs] == ["logits", "features"]
    x = np.random.default_rng(1).standard_normal((2, 3, 31, 17)).astype(np.float32)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(x))[0].numpy()
    result = OnnxRuntimeBackend().load(tmp_path / "out" / "model.onnx").run({"image": x})[0]
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_state_dict_is_loaded_when_it_is_plain_tensors(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save({"state_dict": networks.recurrent().state_dict(), "epoch": 3}, weights)
    assert _import(_config("recurrent", _SEQUENCE, weights=str(weights)), tmp_path / "out").parity_max_abs_error


def test_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    marker, weights = tmp_path / "ran", tmp_path / "weights.pt"

    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(marker),)

    torch.save({"lstm": Malicious()}, weights)
    plain = tmp_path / "plain.pkl"
    plain.write_bytes(pickle.dumps(Malicious()))
    for path in (weights, plain):
        with pytest.raises(InvalidArgument, match=f"weights {path.name}: expected safetensors or a state dict"):
            _import(_config("recurrent", _SEQUENCE, weights=str(path)), tmp_path / "out")
    assert not marker.exists()
    torch.load(weights, weights_only=False)
    assert marker.exists(), "the file must really be dangerous, or this test shows nothing"


def test_output_keeps_its_name_when_another_value_has_it(tmp_path: Path) -> None:
    model = _config("shadowing", [{"name": "x", "shape": ["batch", 2]}], outputs=["add"])
    assert [record.name for record in _import(model, tmp_path).graph.outputs] == ["add"]
    session = OnnxRuntimeBackend().load(tmp_path / "model.onnx")
    np.testing.assert_allclose(session.run({"x": np.array([[2.0, 3.0]], np.float32)})[0], [[6.0, 12.0]])


def test_every_output_has_its_name_when_one_value_is_several(tmp_path: Path) -> None:
    model = _config("repeating", [{"name": "x", "shape": ["batch", 2]}], outputs=["a", "b", "c"])
    assert [record.name for record in _import(model, tmp_path).graph.outputs] == ["a", "b", "c"]
    results = OnnxRuntimeBackend().load(tmp_path / "model.onnx").run({"x": np.array([[2.0, 3.0]], np.float32)})
    assert [result.tolist() for result in results] == [[[4.0, 6.0]], [[4.0, 6.0]], [[2.0, 3.0]]]


def test_fixed_batch_axis_is_noted_when_it_is_declared_so(tmp_path: Path) -> None:
    imported = _import(_config("recurrent", [{"name": "x", "shape": [2, "sequence", 4]}]), tmp_path)
    assert imported.graph.inputs[0].shape == (2, -1, 4)
    assert any("requests cannot be batched" in note for note in imported.notes)


def test_same_model_gives_the_same_bytes_when_it_is_imported_again(tmp_path: Path) -> None:
    for name in ("one", "two"):
        _import(_config("recurrent", _SEQUENCE), tmp_path / name)
    assert sha256_file(tmp_path / "one" / "model.onnx") == sha256_file(tmp_path / "two" / "model.onnx")


def test_factory_is_found_when_it_lies_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "networks_of_mine.py").write_text("import torch\ndef make():\n    return torch.nn.Linear(4, 2)\n")
    monkeypatch.chdir(tmp_path)
    model = ModelConfig.model_validate(
        {"source": {"torch": "networks_of_mine:make", "inputs": [{"name": "x", "shape": ["batch", 4]}]}}
    )
    assert _import(model, tmp_path / "out").graph.outputs[0].shape == (-1, 2)


@pytest.mark.parametrize(
    ("function", "inputs", "source", "expected"),
    [
        ("absent", _SEQUENCE, {}, "cannot be imported and called: AttributeError"),
        ("raising", _SEQUENCE, {}, "ZeroDivisionError: on purpose"),
        ("no_module", _SEQUENCE, {}, "expected a torch.nn.Module, got int"),
        ("recurrent", [{"name": "x", "shape": ["batch", "sequence", 7]}], {}, "does not take inputs of the declared"),
        ("recurrent", _SEQUENCE, {"outputs": ["a", "b"]}, "gives 1 tensors; expected as many"),
        ("recurrent", _SEQUENCE, {"weights": "/nonexistent/w.pt"}, "there is no such file"),
    ],
)
def test_bad_factory_is_refused_with_its_reason(
    tmp_path: Path, function: str, inputs: list[dict[str, Any]], source: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InvalidArgument, match=expected):
        _import(_config(function, inputs, **source), tmp_path)


def test_weights_are_refused_when_they_do_not_fit_the_module(tmp_path: Path) -> None:
    safetensors.torch.save_file({"head.weight": torch.ones(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(InvalidArgument, match=r"weights in w\.safetensors do not fit"):
        _import(_config("recurrent", _SEQUENCE, weights=str(tmp_path / "w.safetensors")), tmp_path)
    (tmp_path / "w.safetensors").write_bytes(b"garbage")
    with pytest.raises(InvalidArgument, match=r"w\.safetensors: cannot be read as safetensors"):
        _import(_config("recurrent", _SEQUENCE, weights=str(tmp_path / "w.safetensors")), tmp_path)


def test_import_fails_when_the_batch_axis_does_not_survive(tmp_path: Path) -> None:
    with pytest.raises(ServePruneError) as caught:
        _import(_config("only_five", _SEQUENCE), tmp_path)
    assert isinstance(caught.value, InvalidArgument | BuildFailed)
    assert "only_five" in caught.value.message


def test_weights_that_a_factory_draws_are_the_same_every_time(tmp_path: Path) -> None:
    model = _config("unseeded", [{"name": "x", "shape": ["batch", 24]}])
    before = torch.get_rng_state()
    for name in ("first", "second"):
        _import(model, tmp_path / name)
    assert sha256_file(tmp_path / "first" / "model.onnx") == sha256_file(tmp_path / "second" / "model.onnx")
    assert torch.equal(torch.get_rng_state(), before)
