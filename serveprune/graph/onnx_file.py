from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from serveprune.errors import InvalidArgument

EXTERNAL_DATA_FILE = "model.onnx.data"
MAX_EMBEDDED_BYTES = 3 * 2**29
"""1.5 GiB: a protobuf message ends at 2 GiB, and the passes add to the graph."""


def read_header(path: Path) -> onnx.ModelProto:
    """Read an ONNX file without its external data.

    Raises:
        InvalidArgument: The file is missing, truncated or no ONNX model.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        raise InvalidArgument(f"{path.name}: there is no such file at {path}") from None
    except OSError as error:
        raise InvalidArgument(f"{path.name}: cannot be read: {error}") from error
    except (DecodeError, ValueError, RuntimeError) as error:
        raise InvalidArgument(
            f"{path.name}: expected an ONNX model, got bytes that do not parse as one ({error}); "
            "the file is truncated or something else"
        ) from error
    if not model.graph.node or not model.opset_import:
        raise InvalidArgument(f"{path.name}: expected an ONNX model with at least one node, got an empty graph")
    return model


def write_graph(model: ir.Model, path: Path) -> None:
    """Write a graph, its weights inside the file, or beside it as `model.onnx.data` when they are large."""
    if _weight_bytes(model) <= MAX_EMBEDDED_BYTES:
        ir.save(ir.external_data.load_to_model(model), path)
    else:
        ir.save(model, path, external_data=EXTERNAL_DATA_FILE)


def _weight_bytes(model: ir.Model) -> int:
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )
