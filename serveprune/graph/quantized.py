import onnx_ir as ir

_PREFIXES = ("Quantize", "Dequantize", "DynamicQuantize", "QLinear", "QAttention", "QGemm", "QMoE", "QEmbed")
_INTEGER = ("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "MatMulBnb4", "GatherBlockQuantized")


def quantized_node(model: ir.Model) -> ir.Node | None:
    """Return the first node that shows that a graph is quantized, ``None`` for a float graph."""
    found = (
        node
        for graph in model.graphs()
        for node in graph
        if node.op_type.startswith(_PREFIXES) or node.op_type in _INTEGER
    )
    return next(found, None)
