"""From an answer to what TorchServe sends: bytes and their content type, in the form that the request had."""

import io
from collections.abc import Mapping

import numpy as np
import orjson

from serveprune.errors import InvalidArgument, ServePruneError
from serveprune.handlers.torchserve.rows import Form
from serveprune.oip.datatype import Datatype
from serveprune.oip.json_codec import encode_response
from serveprune.oip.json_tensors import encode_json_data
from serveprune.oip.messages import InferenceResponse
from serveprune.oip.output_format import OutputFormat
from serveprune.oip.tensor import Array

JSON = "application/json"
_BINARY = "application/octet-stream"


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
            named = {tensor.name: _nested(encode_json_data(tensor), tensor.shape) for tensor in response.outputs}
            return orjson.dumps(named, option=orjson.OPT_SERIALIZE_NUMPY), JSON
        case Form.NPY:
            (array,) = _arrays(response).values()
            stream = io.BytesIO()
            np.lib.format.write_array(stream, array, allow_pickle=False)
            return stream.getvalue(), _BINARY
        case Form.SAFETENSORS:
            from safetensors.numpy import save

            return save({name: np.ascontiguousarray(array) for name, array in _arrays(response).items()}), _BINARY


def encode_error(error: ServePruneError) -> bytes:
    """Return the body that tells what was wrong."""
    return orjson.dumps({"error": error.message})


def _arrays(response: InferenceResponse) -> Mapping[str, Array]:
    for tensor in response.outputs:
        if tensor.datatype in (Datatype.BYTES, Datatype.BF16):
            raise InvalidArgument(f"output {tensor.name!r}: {tensor.datatype} cannot be said in this form; send JSON")
    return {tensor.name: tensor.array for tensor in response.outputs}


def _nested(data: Array | list[str], shape: tuple[int, ...]) -> object:
    if isinstance(data, list):
        texts = np.empty(len(data), dtype=object)
        texts[:] = data
        return texts.reshape(shape).tolist()
    return data.reshape(shape)
