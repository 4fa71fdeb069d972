from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from serveprune.config.model import OnnxSource
from serveprune.errors import InvalidArgument
from serveprune.graph.external_data import check_external_data
from serveprune.graph.names import repair_file_names
from serveprune.graph.onnx_file import read_header
from serveprune.graph.probe import ProbeInput
from serveprune.graph.source_graph import SourceGraph
from serveprune.graph.tensor_types import axis_sizes, fed_inputs, value_datatype


def read_onnx_source(source: OnnxSource) -> SourceGraph:
    """Read an ONNX file and its external data.

    Raises:
        InvalidArgument: It is no ONNX model, has no batch axis, or its external data lies elsewhere.
    """
    path = Path(source.onnx)
    label = path.name
    proto = read_header(path)
    check_external_data(proto, folder=path.parent, label=label)
    probe_inputs(proto, label=label)
    notes = repair_file_names(proto, label=label)
    _infer_missing_shapes(proto, label=label)
    model = ir.serde.deserialize_model(proto)
    ir.external_data.set_base_dir(model.graph, path.parent.resolve())
    if passes.RemoveInitializersFromInputsPass()(model).modified:
        notes = (*notes, "weights that were listed as inputs are constants now")
    passes.ClearMetadataAndDocStringPass()(model)
    return SourceGraph(label=label, model=model, notes=notes)


def probe_inputs(model: onnx.ModelProto, *, label: str) -> tuple[ProbeInput, ...]:
    """Return what the graph takes, with a name for every dynamic axis.

    Raises:
        InvalidArgument: It takes nothing, or an input has no batch axis or cannot be served.
    """
    inputs = fed_inputs(model.graph)
    if not inputs:
        raise InvalidArgument(f"{label}: expected a graph with at least one input, got none")
    return tuple(_probe_input(value, label=label) for value in inputs)


def _probe_input(value: onnx.ValueInfoProto, *, label: str) -> ProbeInput:
    try:
        datatype, sizes = value_datatype(value), axis_sizes(value)
    except InvalidArgument as error:
        raise InvalidArgument(f"{label}: {error.message}") from error
    if not sizes:
        raise InvalidArgument(
            f"{label}: input {value.name!r} has no batch axis; expected the batch as the first axis of every input"
        )
    named = (
        "batch" if sizes[0] == "" else sizes[0],
        *(size or f"{value.name}.{i}" for i, size in enumerate(sizes[1:])),
    )
    return ProbeInput(value.name, datatype, named)


def _infer_missing_shapes(model: onnx.ModelProto, *, label: str) -> None:
    """Give outputs without a declared shape the one that ONNX infers."""
    missing = [
        value
        for value in model.graph.output
        if value.type.WhichOneof("value") == "tensor_type" and not value.type.tensor_type.HasField("shape")
    ]
    if not missing:
        return
    try:
        inferred = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.output}
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise InvalidArgument(f"{label}: the shapes of its outputs cannot be inferred: {error}") from error
    for value in missing:
        if not inferred[value.name].type.tensor_type.HasField("shape"):
            raise InvalidArgument(
                f"{label}: output {value.name!r} has no shape, and none can be inferred; "
                "export the model with declared output shapes"
            )
        value.CopyFrom(inferred[value.name])
