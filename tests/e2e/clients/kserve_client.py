"""The KServe SDK's REST and gRPC clients, run by an interpreter that has nothing of serveprune."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import httpx
import numpy as np
from client_checks import ARRAYS, GRPC, HTTP, SAMPLES, TEXTS, elements, error_of, report, same
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput

URL = f"http://{HTTP}"
ONE_WORD = "靴 größer"


def tensor(name: str, array: Any, datatype: str = "FP32", *, binary: bool = True) -> InferInput:
    given = InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def over_rest(ask: Callable[[InferenceRESTClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=60, verify=False)) as client:
            return await ask(client)

    return asyncio.run(run())


def over_grpc(ask: Callable[[InferenceGRPCClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with InferenceGRPCClient(GRPC) as client:
            return await ask(client)

    return asyncio.run(run())


def rest_infer(request: InferRequest, **how: Any) -> Any:
    return over_rest(lambda client: client.infer(URL, request, model_name=request.model_name, **how))


def grpc_infer(request: InferRequest, **how: Any) -> Any:
    return over_grpc(lambda client: client.infer(request, **how))


def only(answer: Any) -> Any:
    (output,) = answer.outputs
    return output.as_numpy()


def check_health_and_readiness() -> None:
    async def over_http(client: InferenceRESTClient) -> list[bool]:
        names = ("fashion", "fashion@int8", "minilm", "nobody")
        said = [await client.is_model_ready(URL, name) for name in names]
        return [await client.is_server_live(URL), await client.is_server_ready(URL), *said]

    async def over_channel(client: InferenceGRPCClient) -> list[bool]:
        names = ("fashion", "fashion@int8", "minilm")
        said = [await client.is_model_ready(name) for name in names]
        return [await client.is_server_live(), await client.is_server_ready(), *said]

    assert over_rest(over_http) == [True, True, True, True, True, False]
    assert over_grpc(over_channel) == [True] * 5


def check_every_datatype_over_rest() -> None:
    for datatype, array in SAMPLES.items():
        name = f"identity_{datatype.lower()}"
        for binary in (True,) if datatype == "FP16" else (True, False):
            outputs = [RequestedOutput("y", {"binary_data": binary})]
            request = InferRequest(name, [tensor("x", array, datatype, binary=binary)], request_outputs=outputs)
            assert np.array_equal(only(rest_infer(request)), array), (datatype, binary)


def check_every_datatype_over_grpc() -> None:
    for datatype, array in SAMPLES.items():
        name = f"identity_{datatype.lower()}"
        for binary in (True,) if datatype == "FP16" else (True, False):
            given = tensor("x", array, datatype, binary=binary)
            answer = grpc_infer(InferRequest(name, [given], request_id="7"))
            assert answer.id == "7"
            assert np.array_equal(only(answer), array), (datatype, binary)


def check_all_outputs_in_binary() -> None:
    image = tensor("image", ARRAYS["images"][:3])
    request = InferRequest("fashion", [image], request_id="7", parameters={"binary_data_output": True})
    headers: dict[str, str] = {}
    answer = rest_infer(request, response_headers=headers)
    assert answer.id == "7"
    assert "inference-header-content-length" in headers
    assert same(only(answer), ARRAYS["logits_dense"][:3])


def check_data_as_lists() -> None:
    data = ARRAYS["images"][:2].ravel().tolist()
    for infer in (rest_infer, grpc_infer):
        given = InferInput("image", [2, 1, 28, 28], "FP32", data=data)
        assert same(only(infer(InferRequest("fashion", [given]))), ARRAYS["logits_dense"][:2])


def check_text_as_bytes() -> None:
    for infer in (rest_infer, grpc_infer):
        for binary in (True, False):
            given = tensor("text", elements(*TEXTS), "BYTES", binary=binary)
            assert same(only(infer(InferRequest("minilm", [given]))), ARRAYS["vectors_dense"]), binary
        word = InferInput("x", [1, 1], "BYTES", data=[ONE_WORD])
        said = only(infer(InferRequest("identity_bytes", [word]))).item()
        assert (said.decode() if isinstance(said, bytes) else said) == ONE_WORD


def check_requested_outputs() -> None:
    ones = np.ones((2, 3), dtype=np.float32)
    for infer in (rest_infer, grpc_infer):
        inputs = [tensor("a", ones), tensor("b", 2 * ones)]
        answer = infer(InferRequest("add", inputs, request_outputs=[RequestedOutput("difference")]))
        assert [output.name for output in answer.outputs] == ["difference"]
        assert np.array_equal(only(answer), -ones)


def check_tier_by_name_header_and_parameter() -> None:
    header = {"x-compression-tier": "int8"}
    for infer, headers in ((rest_infer, header), (grpc_infer, tuple(header.items()))):
        for name, parameters, how in (
            ("fashion@int8", None, {}),
            ("fashion", {"tier": "int8"}, {}),
            ("fashion", None, {"headers": dict(headers) if infer is rest_infer else headers}),
        ):
            request = InferRequest(name, [tensor("image", ARRAYS["images"][:4])], parameters=parameters)
            answer = infer(request, **how)
            assert same(only(answer), ARRAYS["logits_int8"][:4]), (infer.__name__, name)
            tier = answer.parameters["tier"]
            assert (tier if isinstance(tier, str) else tier.string_param) == "int8"


def check_errors_are_those_of_the_protocol() -> None:
    image = ARRAYS["images"][:1]
    for name, given, status, code, mention in (
        ("nobody", tensor("image", image), 404, grpc.StatusCode.NOT_FOUND, "nobody"),
        ("fashion@int3", tensor("image", image), 404, grpc.StatusCode.NOT_FOUND, "int3"),
        ("minilm", tensor("image", image), 400, grpc.StatusCode.INVALID_ARGUMENT, "image"),
        ("fashion", tensor("image", image[:, :, 1:]), 400, grpc.StatusCode.INVALID_ARGUMENT, "27"),
    ):
        request = InferRequest(name, [given])
        over_http = error_of(partial(rest_infer, request), httpx.HTTPStatusError)
        assert over_http.response.status_code == status
        assert mention in str(over_http)
        over_channel = error_of(partial(grpc_infer, request), grpc.RpcError)
        assert over_channel.code() is code
        assert mention in over_channel.details()


def check_deadline() -> None:
    steps = InferInput("steps", [1], "INT64", data=[50_000])  # some ten microseconds each
    request = InferRequest("slow", [steps, InferInput("x", [1, 256], "FP32", data=[1.0] * 256)])
    late = error_of(partial(grpc_infer, request, timeout=0.02), grpc.RpcError)
    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def check_many_at_once() -> None:
    async def ask(infer: Callable[[int], Awaitable[Any]]) -> list[Any]:
        return [only(answer) for answer in await asyncio.gather(*map(infer, range(len(ARRAYS["images"]))))]

    def request(number: int) -> InferRequest:
        return InferRequest("fashion", [tensor("image", ARRAYS["images"][number : number + 1])])

    for answers in (
        over_rest(lambda client: ask(lambda n: client.infer(URL, request(n), model_name="fashion"))),
        over_grpc(lambda client: ask(lambda n: client.infer(request(n)))),
    ):
        assert same(np.concatenate(answers), ARRAYS["logits_dense"])


if __name__ == "__main__":
    report(globals())
