"""What users of tritonclient do with the models of a repository. Arguments: address of HTTP, of gRPC.

The repository holds `three`, which adds 3, and `broken`, which is no graph; `outside` is a model of the config file.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    try:
        call()
    except InferenceServerException as error:
        return str(error.status()), str(error.message())
    raise AssertionError("the server did what it should refuse")


def states(client: Any) -> dict[str, str]:
    index = client.get_model_repository_index()
    entries = index if isinstance(index, list) else [{"name": e.name, "state": e.state} for e in index.models]
    return {entry["name"]: entry["state"] for entry in entries}


def answer(kind: Any, client: Any) -> float:
    given = kind.InferInput("x", [1, 4], "FP32")
    given.set_data_from_numpy(np.zeros((1, 4), np.float32))
    return float(client.infer("three", [given]).as_numpy("y")[0, 0])


def check(kind: Any, client: Any, *, not_found: str, precondition: str, invalid: str, unimplemented: str) -> None:
    assert states(client)["three"] == states(client)["broken"] == "UNAVAILABLE"
    client.load_model("three")
    assert client.is_model_ready("three")
    assert states(client)["three"] == states(client)["three@dense"] == "READY"
    assert answer(kind, client) == 3.0
    client.load_model("three")
    client.unload_model("three")
    assert states(client)["three"] == "UNAVAILABLE"
    assert refusal(lambda: answer(kind, client))[0] == not_found
    assert refusal(lambda: client.unload_model("three"))[0] == not_found
    assert refusal(lambda: client.load_model("nobody"))[0] == not_found
    status, message = refusal(lambda: client.load_model("broken"))
    assert status in (precondition, invalid), (status, message)
    assert refusal(lambda: client.load_model("outside"))[0] == precondition
    assert refusal(lambda: client.unload_model("outside"))[0] == precondition
    for name in ("../three", "..", "three/../../x", "/etc", "three@dense"):
        assert refusal(lambda name=name: client.load_model(name))[0] in (invalid, not_found), name  # type: ignore[misc]
    assert refusal(lambda: client.load_model("three", config="{}"))[0] == unimplemented


check(
    triton_http,
    triton_http.InferenceServerClient(sys.argv[1], network_timeout=120.0),
    not_found="404", precondition="409", invalid="400", unimplemented="501",
)  # fmt: skip
check(
    triton_grpc,
    triton_grpc.InferenceServerClient(sys.argv[2]),
    not_found="StatusCode.NOT_FOUND",
    precondition="StatusCode.FAILED_PRECONDITION",
    invalid="StatusCode.INVALID_ARGUMENT",
    unimplemented="StatusCode.UNIMPLEMENTED",
)
print("content")
