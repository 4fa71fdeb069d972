from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from unit.compression.pruning.networks import Network

from serveprune.compression.pruning.dependency_graph import DependencyGraph
from serveprune.compression.pruning.equivalence import check_equivalence
from serveprune.compression.pruning.observation import observe_sizes, sized_feeds
from serveprune.compression.pruning.preparation import prepare
from serveprune.compression.pruning.surgery import remove_units
from serveprune.compression.sparsity.zero_units import removable_units
from serveprune.graph.onnx_file import write_graph
from serveprune.graph.onnx_source import probe_inputs

Zero = tuple[str, Any]
"""A constant, and an index of what becomes zero in it."""


def hidden_layer(path: Path, *activation: str, zero: tuple[Zero, ...]) -> Path:
    """An input of 6, a hidden layer of 8, 3 answers; with zeros where told."""
    n = Network()
    hidden = n.linear(n.input("batch", 6), 6, 8, name="first")
    for operator in activation:
        hidden = n.node(operator, hidden)
    return zeroed(n.save(path, n.linear(hidden, 8, 3, name="second")), zero)


def zeroed(path: Path, zero: tuple[Zero, ...]) -> Path:
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        for name, places in zero:
            if tensor.name == name:
                array = numpy_helper.to_array(tensor).copy()
                array[places] = 0
                tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, path)
    return path


def removed(path: Path) -> int:
    """Return how many units go; the answers must be those of before."""
    model = prepare(path, output=path.with_name("prepared.onnx"))
    graph = DependencyGraph(model, observe_sizes(model, workspace=path.parent))
    units = removable_units(model, graph)
    small = ir.load(path.with_name("prepared.onnx"))
    remove_units(small, graph, units)
    write_graph(small, path.with_name("small.onnx"))
    feeds = next(iter(sized_feeds(probe_inputs(onnx.load(path), label=path.name))))
    check_equivalence(path.with_name("small.onnx"), path, feeds, tolerance=1e-6)
    return len(units)


MADE = (("first", np.s_[:, [1, 4]]), ("first.bias", [1, 4]))
READ = (("second", [0, 5, 6]),)


@pytest.mark.parametrize("activation", ["Relu", "Tanh", "Erf", "Neg", "Abs"])
def test_units_without_weights_and_bias_go_when_the_activation_keeps_zero(tmp_path: Path, activation: str) -> None:
    assert removed(hidden_layer(tmp_path / "net.onnx", activation, zero=MADE)) == 2


@pytest.mark.parametrize("activation", ["Sigmoid", "Cos", "Exp", "Softplus"])
def test_units_stay_when_the_activation_makes_something_of_zero(tmp_path: Path, activation: str) -> None:
    assert removed(hidden_layer(tmp_path / "net.onnx", activation, zero=MADE)) == 0


def test_units_stay_when_their_bias_is_left(tmp_path: Path) -> None:
    assert removed(hidden_layer(tmp_path / "net.onnx", "Relu", zero=MADE[:1])) == 0


def test_units_that_nobody_reads_go_whatever_they_are(tmp_path: Path) -> None:
    assert removed(hidden_layer(tmp_path / "net.onnx", "Sigmoid", zero=READ)) == 3
    assert removed(hidden_layer(tmp_path / "both.onnx", "Relu", zero=(*MADE, *READ))) == 5


def test_one_unit_of_a_group_stays_when_all_are_zero(tmp_path: Path) -> None:
    assert removed(hidden_layer(tmp_path / "net.onnx", "Relu", zero=(("second", np.s_[:]),))) == 7


def test_units_of_a_residual_stream_stay_while_any_part_of_it_lives(tmp_path: Path) -> None:
    def network(path: Path, *zero: Zero) -> Path:
        n = Network()
        stem = n.node("Relu", n.conv(n.input("batch", 2, 5, 5), 2, 8, name="stem"))
        branch = n.node("Relu", n.conv(stem, 8, 8, name="branch"))
        total = n.node("Add", stem, branch)
        return zeroed(n.save(path, n.pooled_head(total, 8)), zero)

    made = (("branch", [3]), ("branch.bias", [3]))
    assert removed(network(tmp_path / "one.onnx", *made)) == 0
    stem = (("stem", [3]), ("stem.bias", [3]))
    assert removed(network(tmp_path / "two.onnx", *made, *stem)) == 1
    # Its input axis runs along the same units as its outputs: zeros there say nothing of what it makes.
    assert removed(network(tmp_path / "three.onnx", ("branch", np.s_[:, [3]]), ("branch.bias", [3]), *stem)) == 0


def test_channels_go_through_batch_norm_and_depthwise_filters_when_nothing_shifts_them(tmp_path: Path) -> None:
    def network(path: Path, *zero: Zero) -> Path:
        n = Network()
        x = n.conv(n.input("batch", 2, 5, 5), 2, 6, name="first")
        statistics = [n.weight(6, name=f"norm.{part}") for part in ("scale", "shift", "mean")]
        variance = n.constant(np.full(6, 0.5, np.float32), name="norm.variance")
        x = n.node("Relu", n.node("BatchNormalization", x, *statistics, variance))
        x = n.conv(x, 6, 6, name="depthwise", group=6)
        return zeroed(
            n.save(path, n.pooled_head(n.node("Clip", x, n.constant(np.float32(0)), n.constant(np.float32(6))), 6)),
            zero,
        )

    gone: tuple[Zero, ...] = tuple(
        (name, [2]) for name in ("first", "first.bias", "norm.shift", "norm.mean", "depthwise.bias")
    )
    assert removed(network(tmp_path / "all.onnx", *gone)) == 1
    for left in range(len(gone)):
        assert removed(network(tmp_path / f"{left}.onnx", *gone[:left], *gone[left + 1 :])) == 0
