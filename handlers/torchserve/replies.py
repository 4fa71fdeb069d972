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


def encode_reply(response: InferenceResponse, form: Form, *, is_reread: bool = False) -> tuple[bytes, str]:
    """Return the body of an answer and its content type.

    Args:
        response: The answer.
        form: Of its request.
        is_reread: TorchServe's gRPC front end for the Open Inference Protocol reads what is in that protocol, and ends
            the worker over what it does not expect: a key that is missing, a null among numbers.

    Raises:
        InvalidArgument: An output cannot be said in this form.
    """
    match form:
        case Form.OIP:
            if is_reread:
                _expect_finite(response)
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


def encode_error(error: ServePruneError, *, model: str, version: str, is_reread: bool = False) -> bytes:
    """Return the body that tells what was wrong.

    Args:
        error: What was.
        model: It was asked for.
        version: Of the model.
        is_reread: See `encode_reply`. That front end leaves nothing of the status, and of the body only outputs.
    """
    message = error.message.encode("utf-8", "replace").decode()
    document: dict[str, Any] = {"error": message}
    if is_reread:
        output = {"name": "error", "datatype": Datatype.BYTES.value, "shape": [1], "data": [message]}
        document |= {"id": "", "model_name": model, "model_version": version, "outputs": [output]}
    return orjson.dumps(document)


def encode_description(tiers: Mapping[str, Any]) -> bytes:
    """Return how the tiers of a model stand."""
    return orjson.dumps(tiers)


def header_text(text: str) -> str:
    """Return what a header may hold, of which TorchServe refuses to send anything else."""
    return "".join(each if " " <= each <= "~" else "?" for each in text)


def _expect_finite(response: InferenceResponse) -> None:
    for tensor in response.outputs:
        if tensor.array.dtype.kind == "f" and not np.isfinite(tensor.array).all():
            raise InvalidArgument(f"output {tensor.name!r} holds NaN or an infinity, which JSON has no form for")


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
