"""Every datatype, form and option of tritonclient's four clients, and what the server has no extension for."""

import asyncio
import contextlib
import queue
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from client_checks import ARRAYS, DIRECTIONS, GRPC, HTTP, SAMPLES, elements, error_of, report, same
from tritonclient.utils import InferenceServerException

A = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=np.float32)
B = np.array([[0.5, 0.5, 0.5], [0.0, 1.0, 2.0]], dtype=np.float32)
WORDS = ("boot", "größer 靴", "")
WITHOUT_JSON = ("FP16", "BF16")
SECONDS = 30.0


def over_http(address: str = HTTP) -> Any:
    return triton_http.InferenceServerClient(address, network_timeout=120.0)


def over_grpc(address: str = GRPC) -> Any:
    return triton_grpc.InferenceServerClient(address)


def tensor(kind: Any, name: str, array: Any, datatype: str = "FP32", **how: Any) -> Any:
    given = kind.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, **how)
    return given


def terms(kind: Any) -> list[Any]:
    return [tensor(kind, "a", A), tensor(kind, "b", B)]


def words() -> Any:
    return elements(*(word.encode() for word in WORDS)).reshape(1, 3)


def refusal(call: Callable[[], Any]) -> Any:
    return error_of(call, InferenceServerException)


def check_every_datatype_over_http_in_every_form() -> None:
    client = over_http()
    for datatype, array in SAMPLES.items():
        forms = (True,) if datatype in WITHOUT_JSON else (True, False)
        for binary_in in forms:
            for binary_out in forms:
                given = tensor(triton_http, "x", array, datatype, binary_data=binary_in)
                wanted = [triton_http.InferRequestedOutput("y", binary_data=binary_out)]
                answer = client.infer(f"identity_{datatype.lower()}", [given], outputs=wanted)
                (output,) = answer.get_response()["outputs"]
                assert output["datatype"] == datatype
                assert ("data" in output) is not binary_out
                assert answer.as_numpy("y").dtype == array.dtype
                assert np.array_equal(answer.as_numpy("y"), array), (datatype, binary_in, binary_out)


def check_every_datatype_over_grpc() -> None:
    client = over_grpc()
    for datatype, array in SAMPLES.items():
        answer = client.infer(f"identity_{datatype.lower()}", [tensor(triton_grpc, "x", array, datatype)])
        assert answer.as_numpy("y").dtype == array.dtype
        assert np.array_equal(answer.as_numpy("y"), array), datatype


def check_every_datatype_over_asyncio_clients() -> None:
    async def ask() -> None:
        for kind, module, address in ((triton_http_aio, triton_http, HTTP), (triton_grpc_aio, triton_grpc, GRPC)):
            client = kind.InferenceServerClient(address)
            try:
                for datatype, array in SAMPLES.items():
                    given = tensor(module, "x", array, datatype)
                    answer = await client.infer(f"identity_{datatype.lower()}", [given], request_id=datatype)
                    response = answer.get_response()
                    assert (response["id"] if isinstance(response, dict) else response.id) == datatype
                    assert np.array_equal(answer.as_numpy("y"), array), (kind.__name__, datatype)
            finally:
                await client.close()

    asyncio.run(ask())


def check_bytes_in_every_form() -> None:
    expected = [word.encode() for word in WORDS]
    for binary_in in (True, False):
        for binary_out in (True, False):
            array = words() if binary_in else elements(*WORDS).reshape(1, 3)
            answer = over_http().infer(
                "identity_bytes",
                [tensor(triton_http, "x", array, "BYTES", binary_data=binary_in)],
                outputs=[triton_http.InferRequestedOutput("y", binary_data=binary_out)],
            )
            said = answer.as_numpy("y").ravel().tolist()
            assert [one.encode() if isinstance(one, str) else one for one in said] == expected
    answer = over_grpc().infer("identity_bytes", [tensor(triton_grpc, "x", words(), "BYTES")])
    assert answer.as_numpy("y").ravel().tolist() == expected


def check_bfloat16_and_bytes_that_are_no_text() -> None:
    """ONNX Runtime takes neither from numpy; the front ends do."""
    floats = np.array([[1.0, -1.0, 0.5]], dtype=ml_dtypes.bfloat16)
    raw = elements(b"\xff\x00\xfe").reshape(1, 1)
    for kind, client in (
        (triton_http, over_http(DIRECTIONS["plane_http"])),
        (triton_grpc, over_grpc(DIRECTIONS["plane_grpc"])),
    ):
        answer = client.infer("identity_bf16", [tensor(kind, "x", floats, "BF16")])
        assert np.array_equal(answer.as_numpy("y"), floats)
        answer = client.infer("identity_bytes", [tensor(kind, "x", raw, "BYTES")])
        assert answer.as_numpy("y").tolist() == [[b"\xff\x00\xfe"]]


def check_requested_outputs() -> None:
    for kind, client in ((triton_http, over_http()), (triton_grpc, over_grpc())):
        answer = client.infer("add", terms(kind))
        assert np.array_equal(answer.as_numpy("sum"), A + B)
        assert np.array_equal(answer.as_numpy("difference"), A - B)
        answer = client.infer("add", terms(kind)[::-1], outputs=[kind.InferRequestedOutput("difference")])
        assert np.array_equal(answer.as_numpy("difference"), A - B)
        assert answer.as_numpy("sum") is None
        error = refusal(partial(client.infer, "add", terms(kind), outputs=[kind.InferRequestedOutput("product")]))
        assert "product" in error.message()


def check_one_output_in_binary_and_one_in_json() -> None:
    outputs = [
        triton_http.InferRequestedOutput("difference", binary_data=False),
        triton_http.InferRequestedOutput("sum", binary_data=True),
    ]
    answer = over_http().infer("add", terms(triton_http), outputs=outputs)
    assert [output["name"] for output in answer.get_response()["outputs"]] == ["difference", "sum"]
    assert np.array_equal(answer.as_numpy("sum"), A + B)
    assert np.array_equal(answer.as_numpy("difference"), A - B)


def check_id_priority_timeout_and_parameters() -> None:
    options = {
        "request_id": "ü-7",
        "priority": 2,
        "timeout": 30_000_000,
        "parameters": {"word": "x", "n": 3, "on": True},
    }
    for kind, client in ((triton_http, over_http()), (triton_grpc, over_grpc())):
        answer = client.infer("add", terms(kind), model_version="1", **options)
        response = answer.get_response()
        assert (response["id"] if isinstance(response, dict) else response.id) == "ü-7"
        assert np.array_equal(answer.as_numpy("sum"), A + B)
        error = refusal(partial(client.infer, "add", terms(kind), model_version="9"))
        assert "version" in error.message()


def slow(steps: int) -> list[Any]:
    """Inputs of the model ``slow``, which takes some ten microseconds a step."""
    return [
        tensor(triton_grpc, "steps", np.array([steps], dtype=np.int64), "INT64"),
        tensor(triton_grpc, "x", np.ones((1, 256), dtype=np.float32)),
    ]


def check_client_timeout_is_a_deadline() -> None:
    error = refusal(lambda: over_grpc().infer("slow", slow(50_000), client_timeout=0.02))
    assert "DEADLINE_EXCEEDED" in error.status()
    answer = over_grpc().infer("add", terms(triton_grpc), client_timeout=SECONDS)
    assert np.array_equal(answer.as_numpy("sum"), A + B)


def check_requests_that_do_not_block() -> None:
    client = over_http()
    pending = [client.async_infer("add", terms(triton_http), request_id=str(number)) for number in range(16)]
    for number, one in enumerate(pending):
        answer = one.get_result()
        assert answer.get_response()["id"] == str(number)
        assert np.array_equal(answer.as_numpy("sum"), A + B)
    answers: queue.Queue[Any] = queue.Queue()
    with over_grpc() as grpc_client:
        for _ in range(16):
            grpc_client.async_infer("add", terms(triton_grpc), lambda result, error: answers.put((result, error)))
        for _ in range(16):
            result, error = answers.get(timeout=SECONDS)
            assert error is None, error
            assert np.array_equal(result.as_numpy("difference"), A - B)


def check_call_that_is_cancelled() -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with over_grpc() as client:
        call = client.async_infer("slow", slow(50_000), lambda result, error: answers.put((result, error)))
        call.cancel()
        _, error = answers.get(timeout=SECONDS)
        assert "cancel" in str(error).lower(), error


def check_body_made_and_read_by_hand() -> None:
    body, length = triton_http.InferenceServerClient.generate_request_body(terms(triton_http), request_id="by hand")
    client = over_http()
    answer = client._post(
        "v2/models/add/infer", body, {"Inference-Header-Content-Length": str(length)} if length else {}, {}
    )
    parsed = triton_http.InferenceServerClient.parse_response_body(
        bytes(answer.read()), header_length=int(answer.get("Inference-Header-Content-Length"))
    )
    assert parsed.get_response()["id"] == "by hand"
    assert np.array_equal(parsed.as_numpy("sum"), A + B)


def check_classification_is_refused() -> None:
    for kind, client, status in (
        (triton_http, over_http(), "501"),
        (triton_grpc, over_grpc(), "StatusCode.UNIMPLEMENTED"),
    ):
        given = tensor(kind, "image", ARRAYS["images"][:1])
        wanted = [kind.InferRequestedOutput("logits", class_count=3)]
        error = refusal(partial(client.infer, "fashion", [given], outputs=wanted))
        assert error.status() == status
        assert "classification" in error.message()


def check_shared_memory_is_refused() -> None:
    for kind, client, status in (
        (triton_http, over_http(), "501"),
        (triton_grpc, over_grpc(), "StatusCode.UNIMPLEMENTED"),
    ):
        given = kind.InferInput("a", [2, 3], "FP32")
        given.set_shared_memory("region", 24)
        error = refusal(partial(client.infer, "add", [given]))
        assert error.status() == status
        assert "shared memory" in error.message()


def check_stream_is_refused_by_name() -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with over_grpc() as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        with contextlib.suppress(InferenceServerException):  # it may know already that the stream has ended
            client.async_stream_infer("add", terms(triton_grpc))
        result, error = answers.get(timeout=SECONDS)
    assert result is None
    assert error.status() == "StatusCode.UNIMPLEMENTED"
    assert "ModelStreamInfer" in error.message()
    assert "ModelInfer" in error.message().replace("ModelStreamInfer", "")

    async def ask() -> None:
        async def requests() -> Any:
            yield {"model_name": "add", "inputs": terms(triton_grpc)}

        async with triton_grpc_aio.InferenceServerClient(GRPC) as client:
            async for _ in client.stream_infer(requests()):
                pass

    raised = error_of(lambda: asyncio.run(ask()), grpc.RpcError)  # this client hands it on as it came
    assert raised.code() is grpc.StatusCode.UNIMPLEMENTED, raised
    assert "ModelStreamInfer" in raised.details()


def check_extensions_it_lacks_are_refused_by_name() -> None:
    for method, called, named in (
        ("get_model_config", ("add",), "ModelConfig"),
        ("get_inference_statistics", ("add",), "ModelStatistics"),
        ("get_inference_statistics", (), "ModelStatistics"),
        ("get_trace_settings", (), "TraceSetting"),
        ("get_log_settings", (), "LogSettings"),
        ("get_system_shared_memory_status", (), "SystemSharedMemoryStatus"),
        ("register_system_shared_memory", ("region", "/region", 64), "SystemSharedMemoryRegister"),
        ("unregister_system_shared_memory", (), "SystemSharedMemoryUnregister"),
        ("get_cuda_shared_memory_status", (), "CudaSharedMemoryStatus"),
    ):
        error = refusal(partial(getattr(over_grpc(), method), *called))
        assert error.status() == "StatusCode.UNIMPLEMENTED", (method, error)
        assert named in error.message()
        error = refusal(partial(getattr(over_http(), method), *called))
        assert error.status() == "404", (method, error)
        assert error.message()


def check_models_cannot_be_loaded_or_unloaded() -> None:
    for method in ("load_model", "unload_model"):
        error = refusal(partial(getattr(over_grpc(), method), "add"))
        assert error.status() == "StatusCode.UNIMPLEMENTED"
        assert "configuration" in error.message()
        error = refusal(partial(getattr(over_http(), method), "add"))
        assert error.status() in ("404", "501")


def check_tier_is_an_endpoint_of_its_own() -> None:
    for kind, client in ((triton_http, over_http()), (triton_grpc, over_grpc())):
        assert client.is_model_ready("fashion@int8", model_version="1")
        for tier in ("dense", "int8"):
            given = tensor(kind, "image", ARRAYS["images"][:3])
            answer = client.infer(f"fashion@{tier}", [given], model_version="1")
            assert same(answer.as_numpy("logits"), ARRAYS[f"logits_{tier}"][:3])


if __name__ == "__main__":
    report(globals())
