"""ONNX's element types and value headers, in the words of the Open Inference Protocol."""

import onnx

from serveprune.errors import InvalidArgument
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import DYNAMIC, TensorSpec

_DATATYPES: dict[int, Datatype] = {
    onnx.TensorProto.BOOL: Datatype.BOOL,
    onnx.TensorProto.UINT8: Datatype.UINT8,
    onnx.TensorProto.UINT16: Datatype.UINT16,
    onnx.TensorProto.UINT32: Datatype.UINT32,
    onnx.TensorProto.UINT64: Datatype.UINT64,
    onnx.TensorProto.INT8: Datatype.INT8,
    onnx.TensorProto.INT16: Datatype.INT16,
    onnx.TensorProto.INT32: Datatype.INT32,
    onnx.TensorProto.INT64: Datatype.INT64,
    onnx.TensorProto.FLOAT16: Datatype.FP16,
    onnx.TensorProto.FLOAT: Datatype.FP32,
    onnx.TensorProto.DOUBLE: Datatype.FP64,
    onnx.TensorProto.STRING: Datatype.BYTES,
}


def value_datatype(value: onnx.ValueInfoProto) -> Datatype:
    """Return the datatype of a graph input or output.

    Raises:
        InvalidArgument: It is no tensor, or its elements cannot go over the wire.
    """
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise InvalidArgument(f"{value.name}: expected a tensor, got {kind or 'a value without a type'}")
    datatype = _DATATYPES.get(value.type.tensor_type.elem_type)
    if datatype is None:
        name = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        raise InvalidArgument(
            f"{value.name}: element type {name} cannot be served; expected one of {', '.join(Datatype)}"
        )
    return datatype


def axis_sizes(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """Return the size of each axis; a dynamic one is its name, or an empty string if it has none.

    Raises:
        InvalidArgument: The header does not say how many axes there are.
    """
    if not value.type.tensor_type.HasField("shape"):
        raise InvalidArgument(f"{value.name}: expected a declared shape (sizes may be dynamic), got none")
    return tuple(
        axis.dim_value if axis.HasField("dim_value") and axis.dim_value >= 0 else axis.dim_param
        for axis in value.type.tensor_type.shape.dim
    )


def tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """Return name, datatype and shape of a graph input or output, with -1 for dynamic axes."""
    shape = tuple(size if isinstance(size, int) else DYNAMIC for size in axis_sizes(value))
    return TensorSpec(value.name, value_datatype(value), shape)


def fed_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs a caller has to send: those that are not weights with a default value."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]
