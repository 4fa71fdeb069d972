"""From an answer to what TorchServe sends: bytes and their content type, in the form that the request had."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from serveprune.errors import InvalidArgument, ServePruneError
from serveprune.handlers.torchserve.rows import Form
from serveprune.handlers.torchserve.tensor_files import npy_of, safetensors_of
from serveprune.oip.datatype import Datatype
from serveprune.oip.json_codec import encode_response
from serveprune.oip.json_tensors import encode_json_data
from serveprune.oip.messages import InferenceResponse
from serveprune.oip.output_format import OutputFormat
from serveprune.oip.tensor import Array, Tensor

JSON = "application/json"
_BINARY = "application/octet-stream"
_WITHOUT_JSON = (Datatype.FP16, Datatype.BF16)


def encode_reply(response: InferenceResponse, form: Form) -> tuple[bytes, str]:
    """Return the body of an answer and its content type.

    Raises:
        InvalidArgument: An output cannot be said in this form.
    """
    match form:
        case Form.OIP:
            parts, _ = encode_response(response, OutputFormat())
            return b"".join(parts), JSON
        case Form.JSON:
            named = {tensor.name: _nested(tensor) for tensor in response.outputs}
            return orjson.dumps(named, option=orjson.OPT_SERIALIZE_NUMPY), JSON
        case Form.NPY:
            (array,) = _arrays(response).values()
            return npy_of(array), _BINARY
        case Form.SAFETENSORS:
            return safetensors_of(_arrays(response)), _BINARY


def encode_error(error: ServePruneError, *, model: str, version: str, as_oip: bool) -> bytes:
    """Return the body that tells what was wrong.

    Args:
        error: What was.
        model: It was asked for.
        version: Of the model.
        as_oip: Complete it to an answer of the Open Inference Protocol: TorchServe's gRPC front end of that protocol
            reads all of its keys from whatever a handler gives, and ends the worker if one is missing.
    """
    document: dict[str, Any] = {"error": error.message.encode("utf-8", "replace").decode()}
    if as_oip:
        document |= {"id": "", "model_name": model, "model_version": version, "outputs": []}
    return orjson.dumps(document)


def header_text(text: str) -> str:
    """Return what a header may hold, of which TorchServe refuses to send anything else."""
    return "".join(each if " " <= each <= "~" else "?" for each in text)


def _arrays(response: InferenceResponse) -> Mapping[str, Array]:
    for tensor in response.outputs:
        if tensor.datatype in (Datatype.BYTES, Datatype.BF16):
            raise InvalidArgument(f"output {tensor.name!r}: {tensor.datatype} cannot be said in this form; send JSON")
    return {tensor.name: tensor.array for tensor in response.outputs}


def _nested(tensor: Tensor) -> object:
    if tensor.datatype in _WITHOUT_JSON:
        raise InvalidArgument(
            f"output {tensor.name!r}: {tensor.datatype} has no JSON form; send .npy or safetensors, and get the same"
        )
    data = encode_json_data(tensor)
    if isinstance(data, list):
        texts = np.empty(len(data), dtype=object)
        texts[:] = data
        return texts.reshape(tensor.shape).tolist()
    # orjson takes no arrays without axes.
    return data.reshape(tensor.shape) if tensor.shape else data[0]
