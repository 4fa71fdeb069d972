from serveprune.config.model import HuggingFaceSource, ModelConfig, OnnxSource, TorchSource
from serveprune.graph.huggingface_folder import image_channels, image_size, token_inputs
from serveprune.graph.onnx_file import read_header
from serveprune.graph.onnx_source import probe_inputs
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import DYNAMIC, TensorSpec


def source_inputs(model: ModelConfig) -> tuple[TensorSpec, ...] | None:
    """Return what the model's graph will take, without exporting it and without torch or transformers.

    Returns:
        The inputs in graph order; ``None`` when only an import can tell: a `.pt2`, an ONNX file whose batch
        axis is fixed at 1 (the import frees it if it can).

    Raises:
        InvalidArgument: The source is unreadable.
    """
    source = model.source
    if isinstance(source, OnnxSource):
        return _onnx_inputs(source)
    if isinstance(source, HuggingFaceSource):
        return _huggingface_inputs(model, source)
    if isinstance(source, TorchSource):
        return tuple(
            TensorSpec(declared.name, Datatype.parse(declared.datatype), _shape(declared.shape))
            for declared in source.inputs
        )
    return None


def _onnx_inputs(source: OnnxSource) -> tuple[TensorSpec, ...] | None:
    inputs = probe_inputs(read_header(source.onnx), label=source.onnx.name)
    if all(value.shape[0] == 1 for value in inputs):
        return None
    return tuple(TensorSpec(value.name, value.datatype, _shape(value.shape)) for value in inputs)


def _huggingface_inputs(model: ModelConfig, source: HuggingFaceSource) -> tuple[TensorSpec, ...] | None:
    if source.task == "image-classification":
        size = image_size(model)
        if size is None:
            return None
        return (TensorSpec("pixel_values", Datatype.FP32, (DYNAMIC, image_channels(model), *size)),)
    return tuple(TensorSpec(name, Datatype.INT64, (DYNAMIC, DYNAMIC)) for name in token_inputs(source.huggingface))


def _shape(shape: tuple[int | str, ...]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else DYNAMIC for size in shape)
