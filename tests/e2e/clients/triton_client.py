"""What users of tritonclient do, run by an interpreter that has tritonclient and nothing of serveprune."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from client_checks import ARRAYS, GRPC, HTTP, PNG, TEXTS, elements, error_of, report, same
from tritonclient.utils import InferenceServerException

IMAGES = ARRAYS["images"]
KINDS = ((triton_http, "http"), (triton_grpc, "grpc"))


def client_of(kind: Any) -> Any:
    if kind is triton_grpc:
        return triton_grpc.InferenceServerClient(GRPC)
    return triton_http.InferenceServerClient(HTTP, concurrency=8, network_timeout=120.0)


def tensor(kind: Any, name: str, array: Any, datatype: str, **how: Any) -> Any:
    given = kind.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, **how)
    return given


def image(kind: Any, rows: slice) -> Any:
    return tensor(kind, "image", IMAGES[rows], "FP32")


def tier_of(result: Any) -> str:
    """Return the tier that served, as the answer's parameters say it."""
    response = result.get_response()
    if isinstance(response, dict):
        return str(response["parameters"]["tier"])
    return str(response.parameters["tier"].string_param)


def refusal(call: Callable[[], Any]) -> Any:
    return error_of(call, InferenceServerException)


def check_health_and_readiness() -> None:
    for kind, _ in KINDS:
        client = client_of(kind)
        assert client.is_server_live()
        assert client.is_server_ready()
        for name in ("minilm", "minilm@int8", "fashion@dense"):
            assert client.is_model_ready(name)
        assert client.is_model_ready("fashion", model_version="1")


def check_server_metadata() -> None:
    over_http = client_of(triton_http).get_server_metadata()
    over_grpc = client_of(triton_grpc).get_server_metadata(as_json=True)
    assert over_http["name"] == over_grpc["name"] == "serveprune"
    assert over_http["extensions"] == over_grpc["extensions"]
    assert "binary_tensor_data" in over_http["extensions"]


def check_model_metadata() -> None:
    over_http = client_of(triton_http).get_model_metadata("fashion@int8")
    over_grpc = client_of(triton_grpc).get_model_metadata("fashion@int8", as_json=True)
    for metadata in (over_http, over_grpc):
        assert metadata["name"] == "fashion@int8"
        assert metadata["versions"] == ["1"]
        shapes = {one["name"]: (one["datatype"], [int(size) for size in one["shape"]]) for one in metadata["inputs"]}
        assert shapes == {"image_bytes": ("BYTES", [-1]), "image": ("FP32", [-1, 1, 28, 28])}
        assert [one["name"] for one in metadata["outputs"]] == ["logits"]


def check_repository_index() -> None:
    over_http = client_of(triton_http).get_model_repository_index()
    over_grpc = client_of(triton_grpc).get_model_repository_index(as_json=True)["models"]
    names = {entry["name"] for entry in over_http}
    assert {"minilm", "minilm@dense", "minilm@int8", "fashion", "fashion@int8"} <= names
    assert names == {entry["name"] for entry in over_grpc}
    assert {entry["state"] for entry in over_http} == {"READY"}


def check_binary_and_json_tensors_give_the_same_answer() -> None:
    client, answers = client_of(triton_http), []
    for binary_in in (True, False):
        for binary_out in (True, False):
            given = tensor(triton_http, "image", IMAGES[:3], "FP32", binary_data=binary_in)
            wanted = [triton_http.InferRequestedOutput("logits", binary_data=binary_out)]
            result = client.infer("fashion", [given], outputs=wanted, request_id="7")
            assert result.get_response()["id"] == "7"
            answers.append(result.as_numpy("logits"))
    answers.append(client.infer("fashion", [image(triton_http, slice(0, 3))]).as_numpy("logits"))
    answers.append(client_of(triton_grpc).infer("fashion", [image(triton_grpc, slice(0, 3))]).as_numpy("logits"))
    for answer in answers:
        assert same(answer, ARRAYS["logits_dense"][:3])


def check_text_as_bytes() -> None:
    vectors = []
    for kind, _ in KINDS:
        texts = tensor(kind, "text", elements(*(text.encode() for text in TEXTS)), "BYTES")
        answer = client_of(kind).infer("minilm", [texts])
        (name,) = output_names(answer)
        vectors.append(answer.as_numpy(name))
    vectors.append(
        client_of(triton_http)
        .infer("minilm", [tensor(triton_http, "text", np.array(TEXTS, dtype=object), "BYTES", binary_data=False)])
        .as_numpy(name)
    )
    for one in vectors:
        assert same(one, ARRAYS["vectors_dense"])


def check_png_as_bytes() -> None:
    for kind, _ in KINDS:
        for tier in ("dense", "int8"):
            picture = tensor(kind, "image_bytes", elements(PNG, PNG), "BYTES")
            answer = client_of(kind).infer(f"fashion@{tier}", [picture]).as_numpy("logits")
            assert answer.shape == (2, 10)
            assert answer.argmax(axis=1).tolist() == [9, 9]  # an ankle boot


def check_tier_by_qualified_name_header_and_parameter() -> None:
    for kind, _ in KINDS:
        client = client_of(kind)
        ways: list[tuple[str, dict[str, Any]]] = [
            ("fashion@int8", {}),
            ("fashion", {"headers": {"x-compression-tier": "int8"}}),
            ("fashion", {"parameters": {"tier": "int8"}}),
            ("fashion@int8", {"parameters": {"tier": "int8"}, "headers": {"x-compression-tier": "int8"}}),
        ]
        for name, how in ways:
            answer = client.infer(name, [image(kind, slice(0, 4))], **how)
            assert tier_of(answer) == "int8", (kind.__name__, name, how)
            assert same(answer.as_numpy("logits"), ARRAYS["logits_int8"][:4]), (kind.__name__, name, how)
        dense = client.infer("fashion", [image(kind, slice(0, 4))])
        assert tier_of(dense) == "dense"
        assert same(dense.as_numpy("logits"), ARRAYS["logits_dense"][:4])
        assert not same(ARRAYS["logits_dense"][:4], ARRAYS["logits_int8"][:4])


def refusals(model: str, tier: str | None = None) -> tuple[InferenceServerException, InferenceServerException]:
    """Return the errors over HTTP and over gRPC for one image that is sent to a model."""
    errors = []
    for kind, _ in KINDS:
        # tritonclient adds to the headers it is given.
        headers = None if tier is None else {"x-compression-tier": tier}
        errors.append(refusal(partial(client_of(kind).infer, model, [image(kind, slice(0, 1))], headers=headers)))
    return errors[0], errors[1]


def check_tiers_that_disagree_are_an_error() -> None:
    over_http, over_grpc = refusals("fashion@int8", tier="dense")
    assert over_http.status() == "400"
    assert over_grpc.status() == "StatusCode.INVALID_ARGUMENT"
    assert over_http.message() == over_grpc.message()
    assert "more than one tier" in over_http.message()


def check_errors_are_those_of_the_protocol() -> None:
    for name, http_status, grpc_status in (
        ("nobody", "404", "StatusCode.NOT_FOUND"),
        ("fashion@int3", "404", "StatusCode.NOT_FOUND"),
        ("minilm", "400", "StatusCode.INVALID_ARGUMENT"),  # it takes no image
    ):
        over_http, over_grpc = refusals(name)
        assert over_http.status() == http_status
        assert over_grpc.status() == grpc_status
        assert over_http.message() == over_grpc.message()
    for kind, _ in KINDS:
        assert "load" in str(refusal(partial(client_of(kind).load_model, "fashion"))).lower()


def check_asyncio_clients() -> None:
    async def ask() -> list[Any]:
        answers = []
        over_http = triton_http_aio.InferenceServerClient(HTTP)
        over_grpc = triton_grpc_aio.InferenceServerClient(GRPC)
        try:
            for client, kind in ((over_http, triton_http), (over_grpc, triton_grpc)):
                assert await client.is_server_ready()
                results = await asyncio.gather(
                    *(client.infer("fashion", [image(kind, slice(row, row + 1))]) for row in range(8))
                )
                answers.append(np.concatenate([result.as_numpy("logits") for result in results]))
        finally:
            await over_http.close()
            await over_grpc.close()
        return answers

    for answer in asyncio.run(ask()):
        assert same(answer, ARRAYS["logits_dense"][:8])


def check_compressed_bodies() -> None:
    expected = ARRAYS["logits_dense"][:2]
    for algorithm in ("gzip", "deflate"):
        answer = client_of(triton_http).infer(
            "fashion",
            [image(triton_http, slice(0, 2))],
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        assert same(answer.as_numpy("logits"), expected)
        over_grpc = client_of(triton_grpc).infer(
            "fashion", [image(triton_grpc, slice(0, 2))], compression_algorithm=algorithm
        )
        assert same(over_grpc.as_numpy("logits"), expected)


def check_message_of_64_megabytes() -> None:
    rows = np.arange(2**24, dtype=np.float32).reshape(4, 2**22)
    for kind, _ in KINDS:
        client = client_of(kind)
        answer = client.infer("identity_fp32", [tensor(kind, "x", rows, "FP32")])
        assert np.array_equal(answer.as_numpy("y"), rows), kind.__name__


def check_300_requests_at_once_are_never_mixed_up() -> None:
    """Each request differs from all others, and its answer must be that to itself alone."""

    def ask(number: int) -> None:
        row = number // 3
        kind, client = ((triton_http, clients[0]), (triton_grpc, clients[1]))[number % 2]
        if number % 3 == 2:
            given = np.full((1, 5), number, dtype=np.float32)
            answer = client.infer("identity_fp32", [tensor(kind, "x", given, "FP32")], request_id=str(number))
            assert np.array_equal(answer.as_numpy("y"), given), number
            return
        tier = ("dense", "int8")[number % 3]
        name, how = ((f"fashion@{tier}", {}), ("fashion", {"parameters": {"tier": tier}}))[row % 2]
        answer = client.infer(name, [image(kind, slice(row, row + 1))], request_id=str(number), **how)
        assert tier_of(answer) == tier, number
        distances = np.abs(answer.as_numpy("logits") - ARRAYS[f"logits_{tier}"]).max(axis=1)
        assert int(np.argmin(distances)) == row, number
        assert distances[row] < 1e-3, (number, distances[row])

    # One thread for each HTTP client: tritonclient's is not thread-safe.
    with ThreadPoolExecutor(24) as threads:
        clients = (_ClientPerThread(), client_of(triton_grpc))
        for finished in [threads.submit(ask, number) for number in range(300)]:
            finished.result()


class _ClientPerThread:
    def infer(self, *positional: Any, **named: Any) -> Any:
        client = client_of(triton_http)
        try:
            return client.infer(*positional, **named)
        finally:
            client.close()


def output_names(result: Any) -> Sequence[str]:
    response = result.get_response()
    outputs = response["outputs"] if isinstance(response, dict) else response.outputs
    return [output["name"] if isinstance(output, dict) else output.name for output in outputs]


if __name__ == "__main__":
    report(globals())
