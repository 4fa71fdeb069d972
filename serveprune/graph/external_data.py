from collections.abc import Iterator
from pathlib import Path

import onnx

from serveprune.errors import InvalidArgument


def check_external_data(model: onnx.ModelProto, *, folder: Path, label: str) -> None:
    """Check that every external tensor lies in a file inside ``folder`` and is wholly there.

    A graph may come from anywhere; without this its weights could be any file of the machine.

    Args:
        model: A model read without its external data.
        folder: The folder of the ONNX file.
        label: How messages name the ONNX file.

    Raises:
        InvalidArgument: A location is absolute, leaves the folder, or its file is missing or too short.
    """
    root = folder.resolve()
    for tensor in _external_tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        where = f"{label}: external data of {tensor.name!r}"
        relative = Path(location)
        if not location or relative.is_absolute() or ".." in relative.parts or "\\" in location:
            raise InvalidArgument(f"{where}: expected a file name inside the model's own folder, got {location!r}")
        path = (root / relative).resolve()
        if not path.is_relative_to(root):
            raise InvalidArgument(
                f"{where}: {location!r} is a link that leaves the model's folder; put the file itself there"
            )
        if not path.is_file():
            raise InvalidArgument(f"{where}: file {location!r} is missing; put it beside the ONNX file")
        _check_extent(entries, size_bytes=path.stat().st_size, where=f"{where} in {location!r}")


def external_files(model: onnx.ModelProto) -> frozenset[str]:
    """Return the names of the files that hold a model's external tensors."""
    return frozenset(
        entry.value for tensor in _external_tensors(model) for entry in tensor.external_data if entry.key == "location"
    )


def _check_extent(entries: dict[str, str], *, size_bytes: int, where: str) -> None:
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
    except ValueError:
        raise InvalidArgument(f"{where}: expected offset and length as integers, got {entries}") from None
    if offset < 0 or length < 0 or offset + length > size_bytes:
        raise InvalidArgument(
            f"{where}: expected {length} bytes at offset {offset}, but the file has {size_bytes}; it is truncated"
        )


def _external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for tensor in _graph_tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor
    for function in model.functions:
        for node in function.node:
            for tensor in _node_tensors(node):
                if tensor.data_location == onnx.TensorProto.EXTERNAL:
                    yield tensor


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        if attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        yield from attribute.tensors
        if attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)
