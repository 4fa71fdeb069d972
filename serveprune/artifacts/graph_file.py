"""A graph's file in an artifact: as it is, or with zeros that take no room on the disk."""

import shutil
import zlib
from pathlib import Path

import numpy as np

from serveprune.artifacts.manifest import COMPRESSED_GRAPH_FILE, GRAPH_FILE
from serveprune.errors import InvalidArgument

_LEAST_REPEATED = 0.25
"""Share of a file's bytes from which compressing pays, that are the most frequent one around. Of a sparse graph that is
zero, or the zero point of integers. Dense weights repeat none: they shrink by a tenth at most, and loading would take
longer for nothing."""

_LEVEL = 6
_GZIP = 16 + zlib.MAX_WBITS
_CHUNK_BYTES = 2**24
_CHUNK_LOOKED_AT_BYTES = 2**16


def is_compressed(path: Path) -> bool:
    """Tell by its name whether a graph's file is compressed."""
    return path.name.endswith(".gz")


def read_graph(path: Path) -> bytes:
    """Return the ONNX bytes of a graph's file, compressed or not.

    Raises:
        InvalidArgument: The file is compressed, and damaged or cut short.
        OSError: It cannot be read.
    """
    content = path.read_bytes()
    if not is_compressed(path):
        return content
    try:
        return zlib.decompress(content, wbits=_GZIP)
    except zlib.error as error:
        raise InvalidArgument(
            f"{path.name}: expected a graph compressed by gzip, got damaged bytes: {error}"
        ) from error


def store_graph(graph: Path) -> Path:
    """Compress a graph's file if that pays, and return where the graph is now.

    Weights beside the graph (external data, beyond 1.5 GiB) stay as they are, and then so does the graph.
    """
    if any(path.name.startswith(f"{graph.name}.") for path in graph.parent.iterdir()) or not _pays(graph):
        return graph
    target = graph.with_name(COMPRESSED_GRAPH_FILE)
    compressor = zlib.compressobj(_LEVEL, wbits=_GZIP)  # no time and no name in the header: same graph, same bytes
    with graph.open("rb") as source, target.open("wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            file.write(compressor.compress(chunk))
        file.write(compressor.flush())
    graph.unlink()
    return target


def plain_graph(graph: Path, *, folder: Path) -> Path:
    """Return a graph's file as passes and tools read it; one that is compressed is unpacked into a folder.

    Raises:
        InvalidArgument: It is compressed, and damaged.
    """
    if not is_compressed(graph):
        return graph
    plain = folder / GRAPH_FILE
    plain.write_bytes(read_graph(graph))
    return plain


def copy_graph(graph: Path, target: Path) -> None:
    """Copy a plain graph, and the weights beside it, under whose name the graph knows them.

    Raises:
        OSError: It cannot be read, or the disk is full.
    """
    shutil.copyfile(graph, target)
    for weights in graph.parent.glob(f"{graph.name}.*"):
        shutil.copyfile(weights, target.with_name(weights.name))


def _pays(graph: Path) -> bool:
    repeated = size = 0
    with graph.open("rb") as file:
        # Tables and matrices of one graph may have different zero points.
        while chunk := file.read(_CHUNK_LOOKED_AT_BYTES):
            size += len(chunk)
            repeated += int(np.bincount(np.frombuffer(chunk, np.uint8)).max())
    return repeated >= _LEAST_REPEATED * max(size, 1)
