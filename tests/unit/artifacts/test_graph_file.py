import gzip
from pathlib import Path

import numpy as np
import pytest

from serveprune.artifacts.graph_file import plain_graph, read_graph, store_graph
from serveprune.errors import InvalidArgument


def written(folder: Path, *, zeros: float, size: int = 200_000) -> Path:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=size).astype(np.float32)
    weights[: int(zeros * size)] = 0
    path = folder / "model.onnx"
    path.write_bytes(rng.permutation(weights).tobytes())
    return path


@pytest.mark.parametrize("zeros", [0.5, 0.9])
def test_graph_is_stored_compressed_when_it_has_many_zeros(tmp_path: Path, zeros: float) -> None:
    graph = written(tmp_path, zeros=zeros)
    content = graph.read_bytes()
    stored = store_graph(graph)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx.gz"] == [stored.name]
    assert read_graph(stored) == content == gzip.decompress(stored.read_bytes())
    # Of every weight that is left the sign, most of the exponent and the mantissa are news; of a zero next to nothing.
    assert stored.stat().st_size < len(content) * ((1 - zeros) + 0.07)


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    one, two = (store_graph(written(folder, zeros=0.8)).read_bytes() for folder in folders)
    assert one == two


def test_graph_stays_as_it_is_when_its_weights_are_dense(tmp_path: Path) -> None:
    graph = written(tmp_path, zeros=0.1)
    assert store_graph(graph) == graph == plain_graph(graph, folder=tmp_path / "nowhere")
    assert graph.exists()


def test_graph_stays_as_it_is_when_its_weights_lie_beside_it(tmp_path: Path) -> None:
    graph = written(tmp_path, zeros=0.9)
    (tmp_path / "model.onnx.data").write_bytes(b"weights")
    assert store_graph(graph) == graph


@pytest.mark.parametrize(("sparse", "name"), [(True, "model.onnx.gz"), (False, "model.onnx")])
def test_integers_are_compressed_when_most_are_their_zero_points(tmp_path: Path, sparse: bool, name: str) -> None:
    rng = np.random.default_rng(0)
    table = np.clip(rng.normal(124, 30, 200_000), 0, 255).astype(np.uint8)
    matrix = np.clip(rng.normal(0, 30, 200_000), -127, 127).astype(np.int8)
    if sparse:
        table[rng.random(table.size) < 0.6] = 124
        matrix[rng.random(matrix.size) < 0.6] = 0
    graph = tmp_path / "model.onnx"
    graph.write_bytes(table.tobytes() + matrix.tobytes())
    assert store_graph(graph).name == name


def test_passes_are_given_a_plain_file(tmp_path: Path) -> None:
    graph = written(tmp_path, zeros=0.9)
    content = graph.read_bytes()
    (tmp_path / "workspace").mkdir()
    plain = plain_graph(store_graph(graph), folder=tmp_path / "workspace")
    assert plain == tmp_path / "workspace" / "model.onnx"
    assert plain.read_bytes() == content


@pytest.mark.parametrize("damage", [lambda content: content[:-1000], lambda content: b"PK" + content[2:]])
def test_damaged_file_is_refused(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    stored = store_graph(written(tmp_path, zeros=0.9))
    stored.write_bytes(damage(stored.read_bytes()))
    with pytest.raises(InvalidArgument, match=r"model\.onnx\.gz: expected a graph compressed by gzip"):
        read_graph(stored)
