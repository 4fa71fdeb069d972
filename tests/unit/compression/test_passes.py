from pathlib import Path

import onnx
import pytest
from unit.compression.graphs import convolutional_graph

from serveprune.compression import passes
from serveprune.compression.passes import PassContext, PassReport, apply_pass, graph_digest, load_pass
from serveprune.config.profile import PassConfig, QuantizeOptions
from serveprune.errors import BuildFailed, Internal


class _Renamer:
    """A pass that rewrites the file and changes nothing that is computed."""

    def apply(self, graph: Path, *, output: Path, context: PassContext) -> PassReport:
        model = onnx.load(graph)
        model.producer_name = "renamer"
        model.graph.name = "renamed"
        onnx.save(onnx.shape_inference.infer_shapes(model), output)
        return PassReport({})


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    return PassContext(
        options=QuantizeOptions(),
        calibration=None,
        cpu="x86_64",
        threads=1,
        seed=0,
        workspace=tmp_path,
        progress=lambda fraction: None,
    )


def test_apply_pass_fails_when_the_pass_changes_nothing(
    tmp_path: Path, context: PassContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "load_pass", lambda name: _Renamer())
    graph = convolutional_graph(tmp_path / "model.onnx")
    with pytest.raises(BuildFailed, match="rename: the pass changed nothing"):
        apply_pass("rename", graph, output=tmp_path / "output.onnx", context=context)
    assert (tmp_path / "output.onnx").read_bytes() != graph.read_bytes()


def test_graph_digest_differs_when_one_weight_differs(tmp_path: Path) -> None:
    graph = convolutional_graph(tmp_path / "model.onnx")
    model = onnx.load(graph)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    weight.raw_data = bytes(4) + weight.raw_data[4:]
    onnx.save(model, tmp_path / "changed.onnx")
    assert graph_digest(tmp_path / "changed.onnx") != graph_digest(graph)


@pytest.mark.parametrize("name", sorted(PassConfig.model_fields))
def test_every_pass_of_the_configuration_is_in_the_table(name: str) -> None:
    assert callable(load_pass(name).apply)


def test_load_pass_names_the_known_ones_when_there_is_no_such_pass() -> None:
    with pytest.raises(Internal, match="quantize"):
        load_pass("prun")
