from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from unit.compression.graphs import convolutional_graph, images

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.sensitivity.quality import QualityMeter, default_samples, spread
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.runnable_graph import RunnableGraph
from serveprune.evaluation.task import Task
from serveprune.oip.tensor import Array, TensorSpec


class Counting:
    """A graph that counts its runs."""

    def __init__(self, graph: RunnableGraph) -> None:
        self._graph = graph
        self.runs = 0

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._graph.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._graph.outputs

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        self.runs += 1
        return self._graph.run(feeds, outputs=outputs)


@pytest.mark.parametrize(("multiplications", "samples"), [(0, 2000), (10**8, 1000), (10**12, 128)])
def test_default_samples_are_fewer_for_larger_models(multiplications: int, samples: int) -> None:
    assert default_samples(multiplications) == samples


def test_spread_draws_the_same_samples_each_time_from_everywhere() -> None:
    samples = Dataset(tuple({"x": np.full(1, index, np.float32)} for index in range(100)))
    drawn = [int(sample["x"][0]) for sample in spread(samples, most=10, seed=0).samples]
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 10
    assert drawn[-1] > 50
    assert drawn == [int(sample["x"][0]) for sample in spread(samples, most=10, seed=0).samples]
    assert spread(samples, most=100, seed=0) is samples


def test_meter_computes_dense_once_and_finds_that_a_graph_agrees_with_itself(tmp_path: Path) -> None:
    path = convolutional_graph(tmp_path / "net.onnx")
    samples = Dataset(tuple({"image": image} for image in images(20, seed=1)))
    dense = Counting(OnnxRuntimeBackend().load(path))
    meter = QualityMeter(dense, samples=samples, task=Task.CLASSIFICATION, task_is_told=True, threads=1)
    assert meter.of(path).quality["top1_agreement"] == 1.0
    assert dense.runs == 3
    assert meter.of(path).quality["top1_agreement"] == 1.0
    assert dense.runs == 3
