"""What clients of TorchServe send, over HTTP and gRPC."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from e2e.deployment import fashion_images
from e2e.torchserve.torchserve_process import TorchServeProcess

_SERVICE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService"


def image_field(folder: Path, number: int = 0) -> dict[str, Any]:
    """Return a request with one image of the evaluation set as JSON."""
    return {"json": {"image": fashion_images(folder, number + 1)[number].tolist()}}


def array_of(answer: Any, output: str) -> Any:
    """Return an output of an answer in plain JSON."""
    assert answer.status_code == 200, answer.text
    return np.asarray(answer.json()[output], dtype=np.float32)


def predict(server: TorchServeProcess, model: str, entries: Mapping[str, bytes]) -> bytes:
    """Call `Predictions` over gRPC, and return what the handler gave."""
    answer: bytes = server.channel.unary_unary(f"{_SERVICE}/Predictions")(
        predictions_request(model, entries), timeout=60
    )
    return prediction_of(answer)


def stream(server: TorchServeProcess, model: str, entries: Mapping[str, bytes]) -> list[bytes]:
    """Call `StreamPredictions` over gRPC, and return all that comes."""
    answers = server.channel.unary_stream(f"{_SERVICE}/StreamPredictions")(
        predictions_request(model, entries), timeout=60
    )
    return [prediction_of(answer) for answer in answers]


def stream_both_ways(server: TorchServeProcess, model: str, entries: Mapping[str, bytes], *, sequence: str = "") -> Any:
    """Call `StreamPredictions2` over gRPC with one request; return all that comes."""
    request = predictions_request(model, entries) + (_field(4, sequence.encode()) if sequence else b"")
    call = server.channel.stream_stream(f"{_SERVICE}/StreamPredictions2")
    return list(call(iter([request]), timeout=60))


def predictions_request(model: str, entries: Mapping[str, bytes]) -> bytes:
    """Return a `PredictionsRequest {string model_name = 1; map<string, bytes> input = 3;}`."""
    written = [_field(3, _field(1, name.encode()) + _field(2, value)) for name, value in entries.items()]
    return _field(1, model.encode()) + b"".join(written)


def prediction_of(answer: bytes) -> bytes:
    """Return what is in a `PredictionResponse {bytes prediction = 1;}`."""
    assert answer[:1] == b"\x0a"
    position, shift, length = 1, 0, 0
    while True:
        length |= (answer[position] & 127) << shift
        shift, position = shift + 7, position + 1
        if answer[position - 1] < 128:
            break
    assert len(answer) == position + length
    return answer[position:]


def _field(number: int, content: bytes) -> bytes:
    length, encoded = len(content), b""
    while length >= 128:
        encoded += bytes([length & 127 | 128])
        length >>= 7
    return bytes([number << 3 | 2]) + encoded + bytes([length]) + content
