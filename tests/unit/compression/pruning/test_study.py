from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from unit.compression.graphs import save

from serveprune.compression.pruning.dependency_graph import DependencyGraph
from serveprune.compression.pruning.importance import ReconstructionImportance, RemovalOrder
from serveprune.compression.pruning.observation import observe_sizes
from serveprune.compression.pruning.study import GroupStudy, Study, StudyCache, study_model
from serveprune.evaluation.dataset import Dataset
from serveprune.oip.tensor import Array

WIDTH = 8


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Two branches from x, added up; the second weighs a thousandth of the first."""
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {}
    nodes = []
    for branch, scale in (("loud", 1.0), ("quiet", 1e-3)):
        weights[f"{branch}.up"] = rng.standard_normal((6, WIDTH)).astype(np.float32)
        weights[f"{branch}.down"] = (scale * rng.standard_normal((WIDTH, 6))).astype(np.float32)
        nodes += [
            helper.make_node("MatMul", ["x", f"{branch}.up"], [f"{branch}.h"], name=f"{branch}/up"),
            helper.make_node("Relu", [f"{branch}.h"], [f"{branch}.r"], name=f"{branch}/relu"),
            helper.make_node("MatMul", [f"{branch}.r", f"{branch}.down"], [f"{branch}.y"], name=f"{branch}/down"),
        ]
    nodes.append(helper.make_node("Add", ["loud.y", "quiet.y"], ["y"], name="sum"))
    return save(
        tmp_path / "branches.onnx",
        nodes,
        weights,
        inputs={"x": (TensorProto.FLOAT, ["n", 6])},
        outputs={"y": ["n", 6]},
    )


def test_study_finds_that_a_group_nobody_hears_can_go(network: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).standard_normal((300, 6)).astype(np.float32)
    samples = Dataset(tuple({"x": row} for row in rows))
    model = ir.load(network)
    graph = DependencyGraph(model, observe_sizes(model, workspace=tmp_path, sample=samples.samples[0]))
    study = study_model(
        network,
        model,
        graph,
        graph.groups,
        [],
        ReconstructionImportance(),
        samples=samples,
        workspace=tmp_path,
        threads=1,
    )
    half = {
        group.name: float(found.answer_errors[WIDTH // 2])
        for group, found in zip(graph.groups, study.groups, strict=True)
    }
    assert study.rows_per_input == 300 / WIDTH
    # Both lose the same share of their own outputs; only one of them is heard.
    assert half["loud.up"] > 0.01
    assert half["quiet.up"] < 1e-4 * half["loud.up"]


def test_cache_gives_back_what_was_kept_and_nothing_else(tmp_path: Path) -> None:
    order = RemovalOrder(np.array([2, 0, 1]), np.array([0.0, 0.1, 0.4, 1.0]))
    study = Study((GroupStudy(order, np.array([0.0, 0.01, 0.2, 3.0])),), {"block": 0.25}, 7.5)
    StudyCache(tmp_path, recipe={"graph": "a"}).write(study)
    assert StudyCache(tmp_path, recipe={"graph": "b"}).read() is None
    assert StudyCache(None, recipe={"graph": "a"}).read() is None
    found = StudyCache(tmp_path, recipe={"graph": "a"}).read()
    assert found is not None
    assert (found.block_errors, found.rows_per_input) == ({"block": 0.25}, 7.5)
    np.testing.assert_array_equal(found.groups[0].order.units, order.units)
    np.testing.assert_array_equal(found.groups[0].answer_errors, study.groups[0].answer_errors)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 half of one"])
def test_cache_holds_nothing_when_its_entry_is_damaged(tmp_path: Path, content: bytes) -> None:
    cache = StudyCache(tmp_path, recipe={"graph": "a"})
    cache.write(Study((), {}, 1.0))
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(content)
    assert cache.read() is None


def test_cache_holds_nothing_when_its_entry_is_of_another_time(tmp_path: Path) -> None:
    cache = StudyCache(tmp_path, recipe={"graph": "a"})
    cache.write(Study((), {}, 1.0))
    (entry,) = tmp_path.iterdir()
    np.savez(entry, groups=np.array(0))
    assert cache.read() is None


@pytest.mark.parametrize("field", [6, 10])
def test_cache_holds_nothing_when_the_directory_of_its_entry_is_damaged(tmp_path: Path, field: int) -> None:
    cache = StudyCache(tmp_path, recipe={"graph": "a"})
    cache.write(Study((), {}, 1.0))
    (entry,) = tmp_path.iterdir()
    content = bytearray(entry.read_bytes())
    # The version that is needed to read, and the method of compression: zipfile knows none of that number.
    content[content.index(b"PK\x01\x02") + field] = 199
    entry.write_bytes(content)
    assert cache.read() is None
