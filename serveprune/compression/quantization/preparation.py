"""What a graph goes through before ONNX Runtime's quantizers can read it well."""

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx.external_data_helper import convert_model_to_external_data

from serveprune.errors import InvalidArgument
from serveprune.graph.onnx_file import MAX_EMBEDDED_BYTES, drop_types_of_weights

_PER_CHANNEL_OPSET = 13
_ERRORS_ONLY = 3
_QUANTIZED_OPERATORS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)


def prepare_for_quantization(graph: Path, *, output: Path, threads: int) -> onnx.ModelProto:
    """Write an equivalent graph that quantizes well, and return it.

    BatchNormalization is folded into the Conv before it (with or without a bias there), constants are
    folded, and what an exporter left as Constant or Identity becomes plain weights: ONNX Runtime's basic
    optimizations, which change no result beyond rounding. Then every node gets a name, every value a type
    and, where it can be known, a shape; dynamic axes stay dynamic.

    Raises:
        InvalidArgument: The graph is damaged, ONNX Runtime cannot run it, or it is quantized already.
    """
    _require_float(graph)
    optimized = output.with_name("optimized.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(optimized)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", f"{optimized.name}.data"
    )
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY
    try:
        # MatMulAddFusion would rename the nodes that `ignore` patterns are written for.
        ort.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=["MatMulAddFusion"]
        )
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types here
        raise InvalidArgument(f"ONNX Runtime cannot load the graph: {str(error).splitlines()[0]}") from error
    model = _typed(optimized)
    if _opset(model) < _PER_CHANNEL_OPSET:
        model = onnx.version_converter.convert_version(model, _PER_CHANNEL_OPSET)
    drop_types_of_weights(model)
    _name_nodes(model)
    _separate_shared_gemm_weights(model)
    _drop_unused_opsets(model)
    # The mark by which ONNX Runtime's quantizers know that all this was done.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    save_graph(model, output)
    # Saving to a second file empties the weights of the model in memory.
    return onnx.load(output)


def data_file(graph: Path) -> Path:
    """Return where the weights of a graph are that one file cannot hold."""
    return graph.with_name(f"{graph.name}.data")


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph, with its weights in ``<name>.data`` beside it when one file cannot hold them."""
    if model.ByteSize() > MAX_EMBEDDED_BYTES:
        convert_model_to_external_data(model, all_tensors_to_one_file=True, location=data_file(path).name)
    onnx.save(model, path)


def _typed(graph: Path) -> onnx.ModelProto:
    """Load a graph and infer the types of its values."""
    model = onnx.load(graph)
    if model.ByteSize() <= MAX_EMBEDDED_BYTES:
        return onnx.shape_inference.infer_shapes(model)
    # What is beyond protobuf's limit has to go through a file.
    typed = graph.with_name("typed.onnx")
    onnx.shape_inference.infer_shapes_path(str(graph), str(typed))
    return onnx.load(typed)


def _require_float(graph: Path) -> None:
    try:
        model = onnx.load(graph, load_external_data=False)
    except Exception as error:  # protobuf's error types differ between its implementations
        raise InvalidArgument(f"not an ONNX file, or a damaged one: {error}") from error
    found = Counter(node.op_type for node in model.graph.node if node.op_type in _QUANTIZED_OPERATORS)
    if found:
        operators = ", ".join(f"{count} {name}" for name, count in sorted(found.items()))
        raise InvalidArgument(
            f"quantize: expected a float graph, but this one is quantized already ({operators}); "
            "register the float model, or serve this one as dense without the pass"
        )


def _opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def _name_nodes(model: onnx.ModelProto) -> None:
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            name = f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)


def _separate_shared_gemm_weights(model: onnx.ModelProto) -> None:
    """Give every Gemm with ``transB`` a weight of its own.

    ONNX Runtime's dynamic quantizer transposes such a weight in place "assuming it is not used by any other
    node"; a second use would read it transposed.
    """
    uses = Counter(name for node in model.graph.node for name in node.input)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        if node.op_type == "Gemm" and transposed and node.input[1] in weights and uses[node.input[1]] > 1:
            shared = node.input[1]
            copy = model.graph.initializer.add()
            copy.CopyFrom(weights[shared])
            copy.name = f"{shared}_of_{node.name}"
            node.input[1] = copy.name
            uses[shared] -= 1


def _drop_unused_opsets(model: onnx.ModelProto) -> None:
    used = {node.domain for node in model.graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used or entry.domain == "ai.onnx"]
    has_subgraphs = any(
        attribute.HasField("g") or attribute.graphs for node in model.graph.node for attribute in node.attribute
    )
    if not has_subgraphs:
        del model.opset_import[:]
        model.opset_import.extend(kept)
