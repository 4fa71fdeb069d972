from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from serveprune.artifacts.graph_file import is_compressed, read_graph
from serveprune.errors import InvalidArgument

EXTERNAL_DATA_FILE = "model.onnx.data"
MAX_EMBEDDED_BYTES = 3 * 2**29
"""1.5 GiB of weights; larger ones lie beside the graph. A protobuf message ends at 2 GiB, and the passes add to it."""


def read_header(path: Path) -> onnx.ModelProto:
    """Read an ONNX file without its external data.

    Raises:
        InvalidArgument: The file is missing, truncated or no ONNX model.
    """
    try:
        if is_compressed(path):
            model = onnx.load_model_from_string(read_graph(path))
        else:
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
    """Write a graph, its weights inside the file, or beside it as `model.onnx.data` when they are large.

    Annotations of intermediate values are left out; see `drop_annotations`.
    """
    if _weight_bytes(model) <= MAX_EMBEDDED_BYTES:
        proto = ir.to_proto(ir.external_data.load_to_model(model))
    else:
        ir.save(model, path, external_data=EXTERNAL_DATA_FILE)
        proto = onnx.load(path, load_external_data=False)
    drop_annotations(proto)
    onnx.save(proto, path)


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those of its control-flow branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_graphs(attribute.g)
            for inner in attribute.graphs:
                yield from all_graphs(inner)


def drop_annotations(model: onnx.ModelProto) -> None:
    """Remove what ``value_info`` says of intermediate values, which a runtime finds out by itself.

    With annotated shapes ONNX Runtime fuses each residual sum of a transformer with the normalisation behind it,
    and the fused kernel is the slower one on CPU: a tenth of MiniLM's time, a fifth of its int8 tier's.
    """
    for graph in all_graphs(model.graph):
        del graph.value_info[:]


def drop_types_of_weights(model: onnx.ModelProto) -> None:
    """Remove what ``value_info`` says of weights; a weight says itself what it is.

    Whoever changes a weight in place, as ONNX Runtime's dynamic quantizer does, would leave a contradiction.
    """
    for graph in all_graphs(model.graph):
        weights = {tensor.name for tensor in graph.initializer}
        kept = [value for value in graph.value_info if value.name not in weights]
        if len(kept) < len(graph.value_info):
            del graph.value_info[:]
            graph.value_info.extend(kept)


def _weight_bytes(model: ir.Model) -> int:
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )
