"""Three hundred requests at once, no two alike: no answer is ever another's, and the metrics add up."""

import asyncio
import gc
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from contract.grpc import messages as grpc_messages
from contract.http import messages as http_messages

from e2e.conftest import DemoRun
from e2e.deployment import FASHION, copy_demo_data, copy_store, minilm, write_config
from e2e.distinct_requests import HURRY_SECONDS, TURN, DistinctRequest, Fate, RequestBook, rows_of
from e2e.graphs import write_carrier_model, write_ragged_model
from e2e.server_process import ServerProcess, wait_until
from serveprune.frontends.grpc.pb import open_inference_pb2 as pb
from serveprune.oip.tensor import Array

REQUESTS = 300
PATIENCE_SECONDS = 120.0
LEAVES_AFTER_SECONDS = (0.0, 0.002, 0.01, 0.05)
OK, ABANDONED = "OK", "abandoned"
SETTINGS = [(1, 2), (3, 1), (32, 1), (32, 2)]
"""max_batch_size, executors"""
MODELS = ("carrier", "ragged", "fashion", "minilm")


@pytest.fixture(scope="module")
def store(demo: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that all servers of these tests share, one after the other."""
    tiers = {(model, tier) for model in ("fashion", "minilm") for tier in ("dense", "int8")}
    return copy_store(demo.store, tmp_path_factory.mktemp("shared") / "store", artifacts=tiers)


@pytest.fixture(scope="module")
def book(store: Path, tmp_path_factory: pytest.TempPathFactory) -> RequestBook:
    return RequestBook(lay_out(tmp_path_factory.mktemp("book")), store)


@pytest.fixture(params=SETTINGS, ids=lambda setting: f"batches of {setting[0]}, {setting[1]} executors")
def stressed(request: pytest.FixtureRequest, store: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    max_batch_size, executors = request.param
    lay_out(tmp_path)
    models: dict[str, Mapping[str, Any]] = {
        "fashion": FASHION,
        "minilm": minilm(),
        **{name: {"source": {"onnx": f"{name}.onnx"}, "tiers": ["dense"]} for name in ("carrier", "ragged")},
    }
    config = write_config(
        tmp_path,
        store={"path": str(store)},
        server={"executors": executors},
        models={name: {**model, "max_batch_size": max_batch_size} for name, model in models.items()},
    )
    with ServerProcess(config) as server:
        yield server.wait_open().wait_ready(*MODELS)


def lay_out(folder: Path) -> Path:
    copy_demo_data(folder)
    write_carrier_model(folder / "carrier.onnx")
    write_ragged_model(folder / "ragged.onnx")
    return folder


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Attributes:
        code: OK, the code of an error, or that nobody waited for it.
        problem: What was wrong with the answer.
    """

    request: DistinctRequest
    code: str
    problem: str | None = None


def test_no_answer_is_mixed_up_when_300_distinct_requests_come_at_once(
    stressed: ServerProcess, book: RequestBook, request: pytest.FixtureRequest
) -> None:
    max_batch_size, _ = request.node.callspec.params["stressed"]

    outcomes = asyncio.run(send_all(stressed, list(book.requests(REQUESTS))))
    # Channels of grpc.aio go with their cycles, and must not do so in another test.
    gc.collect()

    assert [f"{outcome.request.number}: {outcome.problem}" for outcome in outcomes if outcome.problem] == []
    check_codes(outcomes)
    wait_until(lambda: stressed.metric("serveprune_requests_in_flight") == 0, what="nothing is in flight any more")
    check_metrics_add_up(stressed, outcomes)
    check_batches(stressed, outcomes, max_batch_size=max_batch_size)
    assert "Traceback" not in stressed.log


def check_codes(outcomes: Sequence[Outcome]) -> None:
    allowed = {
        Fate.ANSWERED: {OK},
        Fate.ABANDONED: {OK, ABANDONED},
        Fate.HURRIED: {OK, "DEADLINE_EXCEEDED"},
        Fate.INVALID: {"INVALID_ARGUMENT", "NOT_FOUND"},
    }
    for outcome in outcomes:
        assert outcome.code in allowed[outcome.request.fate], outcome
    assert Counter(outcome.code for outcome in outcomes)[ABANDONED] > 0


def check_metrics_add_up(server: ServerProcess, outcomes: Sequence[Outcome]) -> None:
    """Requests whose client left, or had no time, may not have reached the server, or may have been answered there."""
    answered = Counter(served_by(outcome.request) for outcome in outcomes if outcome.code == OK)
    unsure = Counter(served_by(outcome.request) for outcome in outcomes if outcome.code != OK)
    for (model, tier), count in answered.items():
        counted = server.metric("serveprune_requests_total", model=model, tier=tier, code=OK)
        assert count <= counted <= count + unsure[model, tier], (model, tier)
    refused = sum(
        server.metric(name, code=code)
        for name in ("serveprune_requests_total", "serveprune_rejected_requests_total")
        for code in ("INVALID_ARGUMENT", "NOT_FOUND")
    )
    assert refused == sum(outcome.request.fate is Fate.INVALID for outcome in outcomes)
    counted = server.metric("serveprune_requests_total") + server.metric("serveprune_rejected_requests_total")
    left = sum(outcome.code in (ABANDONED, "DEADLINE_EXCEEDED") for outcome in outcomes)
    assert len(outcomes) - left <= counted <= len(outcomes)
    assert server.metric("serveprune_requests_total", code="INTERNAL") == 0


def served_by(request: DistinctRequest) -> tuple[str, str]:
    return request.case.model.partition("@")[0], request.case.served_tier


def check_batches(server: ServerProcess, outcomes: Sequence[Outcome], *, max_batch_size: int) -> None:
    batches = server.metric("serveprune_batch_rows_count")
    bucket = next(size for size in (1, 2, 4, 8, 16, 32) if size >= max_batch_size)
    assert server.metric("serveprune_batch_rows_bucket", le=f"{bucket:.1f}") == batches
    rows = [rows_of(outcome.request.number) for outcome in outcomes if outcome.code == OK]
    computed = server.metric("serveprune_batch_rows_sum")
    assert sum(rows) <= computed
    if max_batch_size == 1:
        assert batches == computed
    else:
        # Else the requests were never neighbours, and it proves nothing that they were not mixed up.
        assert batches < sum(math.ceil(each / max_batch_size) for each in rows)


async def send_all(server: ServerProcess, requests: Sequence[DistinctRequest]) -> list[Outcome]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_SECONDS, trust_env=False, limits=limits) as client,
        grpc.aio.insecure_channel(server.endpoints["grpc"], options=[("grpc.enable_http_proxy", 0)]) as channel,
    ):
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        return await asyncio.gather(
            *(
                over_grpc(infer, request) if request.number % 3 == 0 else over_http(client, request)
                for request in requests
            )
        )


async def over_http(client: httpx.AsyncClient, request: DistinctRequest) -> Outcome:
    form = http_messages.json_message if request.number % 3 == 1 else http_messages.binary_message
    body, headers = form(request.case)
    path = http_messages.path(request.case)
    sent = asyncio.create_task(client.post(path, content=body, headers=headers))
    answer = await _or_leave(sent, request)
    if answer is None:
        return Outcome(request, ABANDONED)
    if answer.status_code != 200:
        return Outcome(
            request, next(code for code, status in http_messages.STATUS.items() if status == answer.status_code)
        )
    tensors, document = http_messages.outputs(answer)
    about = (document["id"], document["model_name"], document["parameters"]["tier"])
    return _judged(request, about, {tensor.name: tensor.array for tensor in tensors})


async def over_grpc(infer: Any, request: DistinctRequest) -> Outcome:
    timeout = HURRY_SECONDS if request.fate is Fate.HURRIED else PATIENCE_SECONDS
    message, metadata = grpc_messages.raw_message(request.case), grpc_messages.metadata(request.case)
    call = infer(message, metadata=metadata, timeout=timeout)
    try:
        answer = await _or_leave(asyncio.ensure_future(_awaited(call)), request)
    except grpc.aio.AioRpcError as error:
        return Outcome(request, error.code().name)
    if answer is None:
        return Outcome(request, ABANDONED)
    about = (answer.id, answer.model_name, answer.parameters["tier"].string_param)
    return _judged(request, about, {tensor.name: tensor.array for tensor in grpc_messages.outputs(answer)})


async def _awaited(call: Any) -> Any:
    return await call


async def _or_leave(sent: "asyncio.Future[Any]", request: DistinctRequest) -> Any:
    """Wait for an answer; some clients leave, which closes the connection or resets the stream."""
    if request.fate is not Fate.ABANDONED:
        return await sent
    seconds = LEAVES_AFTER_SECONDS[request.number // TURN % len(LEAVES_AFTER_SECONDS)]
    try:
        return await asyncio.wait_for(sent, seconds)
    except TimeoutError:
        return None


def _judged(request: DistinctRequest, about: tuple[str, str, str], arrays: Mapping[str, Array]) -> Outcome:
    case = request.case
    if about != (case.id, case.model, case.served_tier):
        return Outcome(request, OK, f"the answer says it is for {about}")
    return Outcome(request, OK, request.expected.problem(arrays))
