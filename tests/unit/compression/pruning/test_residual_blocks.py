from pathlib import Path

import onnx_ir as ir
import pytest
from unit.compression.pruning.attention_networks import separate
from unit.compression.pruning.networks import Network, prune, read

from serveprune.compression.pruning.surgery import remove_blocks
from serveprune.errors import NotFound


def images(folder: Path) -> Path:
    """Two residual blocks of equal shape, between them one with a projection, whose channels change."""
    n = Network()
    x = n.conv(n.input("N", 3, 8, 8), 3, 8, name="stem")
    x = n.node("Relu", n.node("Add", x, n.conv(n.node("Relu", n.conv(x, 8, 8, name="a")), 8, 8, name="b")))
    x = n.node("Add", n.conv(x, 8, 6, name="c"), n.conv(x, 8, 6, name="shortcut", kernel=1))
    x = n.node("Add", n.conv(x, 6, 6, name="d"), x)
    return n.save(folder / "network.onnx", n.pooled_head(x, 6))


def test_blocks_are_those_of_equal_shape(tmp_path: Path) -> None:
    graph = read(images(tmp_path), workspace=tmp_path)
    assert [(block.bypass, block.branch, len(block.nodes)) for block in graph.blocks] == [
        ("conv_1", "conv_4", 3),
        ("add_9", "conv_10", 1),
    ]


def test_block_leaves_no_weights_when_it_goes_with_some_units(tmp_path: Path) -> None:
    path = images(tmp_path)
    names = [block.name for block in read(path, workspace=tmp_path).blocks]
    trial = prune(path, workspace=tmp_path, blocks=names)
    assert trial.difference < 1e-4
    assert {"a", "b", "d"}.isdisjoint(trial.after)
    assert trial.after["stem"][0] == 5


def test_attention_and_mlp_of_a_transformer_are_blocks(tmp_path: Path) -> None:
    n = Network(opset=20)
    x = n.linear(n.input("N", "S", 4), 4, 10, name="embed")
    x = n.node("LayerNormalization", n.node("Add", x, separate(n, x, 10, tag="")), n.weight(10))
    x = n.node("Add", n.linear(n.node("Gelu", n.linear(x, 10, 16, name="f")), 16, 10, name="g"), x)
    path = n.save(tmp_path / "network.onnx", x)
    blocks = [block.name for block in read(path, workspace=tmp_path).blocks]
    assert len(blocks) == 2
    trial = prune(path, workspace=tmp_path, blocks=blocks)
    assert {"q", "k", "v", "o", "f", "g"}.isdisjoint(trial.after)


def test_block_inside_the_branch_of_another_goes_with_it_or_alone(tmp_path: Path) -> None:
    n = Network()
    x = n.gemm(n.input("N", 4), 4, 8, name="a")
    inner = n.gemm(x, 8, 8, name="b")
    inner = n.node("Add", n.gemm(inner, 8, 8, name="c"), inner)
    path = n.save(tmp_path / "network.onnx", n.gemm(n.node("Add", x, inner), 8, 2, name="head"))
    blocks = [block.name for block in read(path, workspace=tmp_path).blocks]
    assert len(blocks) == 2
    for names in (blocks, blocks[::-1], blocks[:1], blocks[1:]):
        assert prune(path, workspace=tmp_path, blocks=names).difference < 1e-4


def test_branch_with_another_reader_is_no_block(tmp_path: Path) -> None:
    n = Network()
    x = n.gemm(n.input("N", 4), 4, 8, name="a")
    hidden = n.node("Relu", n.gemm(x, 8, 8, name="b"))
    total = n.node("Add", x, n.gemm(hidden, 8, 8, name="c"))
    graph = read(n.save(tmp_path / "network.onnx", n.node("Mul", total, hidden)), workspace=tmp_path)
    assert graph.blocks == ()


def test_sum_without_weights_or_of_other_shape_is_no_block(tmp_path: Path) -> None:
    n = Network()
    x = n.gemm(n.input("N", 4), 4, 8, name="a")
    x = n.node("Add", x, n.node("Relu", x))
    x = n.node("Add", x, n.gemm(x, 8, 1, name="b"))
    graph = read(n.save(tmp_path / "network.onnx", x), workspace=tmp_path)
    assert graph.blocks == ()


def test_unknown_block_is_refused_with_those_there_are(tmp_path: Path) -> None:
    graph = read(images(tmp_path), workspace=tmp_path)
    with pytest.raises(NotFound, match="got 'nonsense'; there are: add_"):
        remove_blocks(ir.load(tmp_path / "prepared.onnx"), graph, ["nonsense"])
