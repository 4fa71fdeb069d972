"""The operators of OpenVINO that are known to go by shapes, or by indices that are checked."""

from typing import Any

from serveprune.errors import InvalidArgument

_ELEMENTWISE = """
    Abs Acos Acosh Add Asin Asinh Atan Atanh BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceiling Clamp Convert
    ConvertLike Cos Cosh Divide Elu Equal Erf Exp FakeConvert FakeQuantize Floor FloorMod Gelu Greater GreaterEqual
    HSigmoid HSwish HardSigmoid IsFinite IsInf IsNaN Less LessEqual Log LogicalAnd LogicalNot LogicalOr LogicalXor
    Maximum Minimum Mish Mod Multiply Negative NotEqual PRelu Power Relu Round Select Selu Sigmoid Sign Sin Sinh
    SoftPlus SoftSign Sqrt SquaredDifference Subtract Swish Tan Tanh
"""
_NORMALIZATION = """
    BatchNormInference GroupNormalization LRN LogSoftmax MVN NormalizeL2 ReduceL1 ReduceL2 ReduceLogicalAnd
    ReduceLogicalOr ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Softmax
"""
_PRODUCTS_AND_POOLING = """
    AvgPool Convolution ConvolutionBackpropData Einsum GroupConvolution GroupConvolutionBackpropData MatMul MaxPool
    ScaledDotProductAttention
"""
_LAYOUT = """
    Broadcast Concat Constant DepthToSpace Identity Pad Parameter Reshape Result ShapeOf ShuffleChannels Slice
    SpaceToDepth Split Squeeze StridedSlice Tile Transpose Unsqueeze VariadicSplit
"""
_SHAPED_BY_VALUES = "NonZero Range"
"""Where those values come with a request, the graph is refused for its shapes."""

_INDEXED = """
    GRUSequence Gather GatherElements GatherND LSTMSequence RNNSequence ScatterElementsUpdate ScatterNDUpdate
    ScatterUpdate
"""
"""`openvino_indices` says of each of their uses whether it is safe."""

_UNDERSTOOD = frozenset(
    " ".join((_ELEMENTWISE, _NORMALIZATION, _PRODUCTS_AND_POOLING, _LAYOUT, _SHAPED_BY_VALUES, _INDEXED)).split()
)


def require_understood(graph: Any) -> None:
    """Refuse a graph with an operator of which it is not known what values may do to it.

    Args:
        graph: An ``openvino.Model``.

    Raises:
        InvalidArgument: It has one; graphs within the graph (If, Loop) are such operators.
    """
    for node in graph.get_ops():
        if node.get_type_name() not in _UNDERSTOOD:
            raise InvalidArgument(
                f"node {node.get_friendly_name()} ({node.get_type_name()}): it is not known what OpenVINO checks of "
                "this operator; serve this graph with backend: onnxruntime"
            )
