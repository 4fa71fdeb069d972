"""Real requests before a server is timed, whose answers must be those of ONNX Runtime."""

import http.client
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
from serving_peers.peer import Endpoint
from serving_workloads import Workload
from wire_formats import Feeds, Wire

Caller = Callable[[bytes, Mapping[str, str]], tuple[bytes, Mapping[str, str]]]

_CLIENTS = 8
_REPEATS = 4
_TIMEOUT_SECONDS = 60


class NoAnswerError(Exception):
    """A request was refused, or not answered in time."""


def check_answers(server: str, endpoint: Endpoint, workload: Workload) -> int:
    """Send all distinct requests, several at once, and compare; return the least size of an answer in bytes.

    Raises:
        SystemExit: An answer is wrong.
        NoAnswerError: There is none.
    """
    indexes = [index for _ in range(_REPEATS) for index in range(len(workload.feeds))]
    call = _grpc_caller(endpoint) if endpoint.format.wire is Wire.GRPC else _http_caller(endpoint)

    def check(index: int) -> int:
        expected = workload.answers[index]
        body, headers = call(*endpoint.format.encode(workload.feeds[index]))
        found = endpoint.format.decode(body, headers, expected=expected)
        if not _same(found, expected):
            raise SystemExit(
                f"{server}, {workload.name}, {endpoint.format.wire}: request {index} was answered wrongly:\n"
                f"{_shown(found)}\nONNX Runtime says\n{_shown(expected)}"
            )
        return len(body)

    with ThreadPoolExecutor(_CLIENTS) as executor:
        return min(executor.map(check, indexes))


def _http_caller(endpoint: Endpoint) -> Caller:
    def call(body: bytes, headers: Mapping[str, str]) -> tuple[bytes, Mapping[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=_TIMEOUT_SECONDS)
        try:
            connection.request("POST", endpoint.format.path, body, dict(headers))
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise NoAnswerError(f"{endpoint.format.path} answered {answer.status}: {content[:500]!r}")
            return content, dict(answer.getheaders())
        except OSError as error:
            raise NoAnswerError(f"{endpoint.format.path} did not answer: {error}") from error
        finally:
            connection.close()

    return call


def _grpc_caller(endpoint: Endpoint) -> Caller:
    channel = grpc.insecure_channel(f"127.0.0.1:{endpoint.port}")
    # Bytes both ways: the format writes and reads the messages.
    method = channel.unary_unary(endpoint.format.path)

    def call(body: bytes, headers: Mapping[str, str]) -> tuple[bytes, Mapping[str, str]]:
        try:
            return method(body, timeout=_TIMEOUT_SECONDS), {}
        except grpc.RpcError as error:
            raise NoAnswerError(f"{endpoint.format.path} answered {error.code().name}: {error.details()}") from error

    return call


def _same(found: Feeds, expected: Feeds) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].shape == array.shape and np.allclose(found[name], array, rtol=1e-3, atol=1e-4)
        for name, array in expected.items()
    )


def _shown(values: Feeds) -> str:
    return "\n".join(f"{name}: {array.ravel()[:8]}" for name, array in values.items())
