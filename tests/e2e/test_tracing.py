"""Traces and logs of real servers, with a collector that reads what comes."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from contract.grpc.messages import of_arrays
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from e2e.deployment import DYNAMIC_INT8, FASHION, copy_demo_data, write_config
from e2e.graphs import write_contract_models
from e2e.otlp_receiver import Received, ReceivedSpan, receiving_over_grpc, receiving_over_http
from e2e.process_pair import ADD_INPUTS, ADD_REQUEST, CONNECTIONS, wait_both, write_models
from e2e.server_process import ServerProcess, wait_until
from serveprune.frontends.grpc.pb.open_inference_pb2_grpc import GRPCInferenceServiceStub

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
SERVER, ERROR = 2, 2
"""Of a span's kind and status, in OTLP."""

SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=serving"}
LATE = {"OTEL_BSP_SCHEDULE_DELAY": "600000"}
LOGS = {"format": "json", "access": {"sample_ratio": 1.0}}
ADD = "/v2/models/add/infer"
OPERATORS_TOKEN = "an-operators-own-token-01"
ADMIN = {
    "http": "127.0.0.1:0",
    "grpc": "127.0.0.1:0",
    "tokens": {"environment": "SERVEPRUNE_ADMIN_TOKEN"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced")
    copy_demo_data(folder)
    write_contract_models(folder)
    return folder


def write_traced(folder: Path, *, tracing: dict[str, Any] | None, **server: Any) -> Path:
    fashion = {**FASHION, "source": {"onnx": str(folder / "fashion.onnx")}}
    # No tier can be that fast, so dense stands in for this one.
    profile = {**DYNAMIC_INT8, "gate": {"min_quality": 0.0, "max_latency_ratio": 0.0001}}
    tracing_given = {} if tracing is None else {"tracing": tracing}
    return write_config(
        folder,
        server={**tracing_given, "logs": LOGS, **server},
        profiles={"int8": profile},
        models={"fashion": fashion, "add": {"source": {"onnx": "add.onnx"}, "tiers": ["dense"]}},
    )


@pytest.fixture(scope="module")
def collector() -> Iterator[Received]:
    with receiving_over_http() as received:
        yield received


@pytest.fixture(scope="module")
def traced(folder: Path, collector: Received) -> Iterator[ServerProcess]:
    config = write_traced(
        folder,
        tracing={
            "endpoint": collector.endpoint,
            "service_name": "shop-models",
            "resource_attributes": {"deployment.environment.name": "test"},
        },
    )
    with ServerProcess(config, environment=SOON) as server:
        server.wait_open()
        server.wait_state("add", "dense", "ready")
        server.wait_state("fashion", "int8", "refused")
        yield server


def lines_of(server: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.splitlines()]


def access_line(server: ServerProcess, request_id: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        # The last line may be half written.
        complete = server.log.rpartition("\n")[0].splitlines()
        found[:] = [line for line in map(json.loads, complete) if line.get("request_id") == request_id]
        return bool(found)

    wait_until(is_there, what=f"the line of request {request_id}")
    assert len(found) == 1
    return found[0]


def expect_within(span: ReceivedSpan, stages: dict[str, ReceivedSpan], names: list[str]) -> None:
    """Expect the stages in this order, one after the other, in the time of their request."""
    in_order = sorted(stages.values(), key=lambda stage: (stage.begun_ns, stage.ended_ns))
    assert [stage.name for stage in in_order] == names
    moments = [moment for stage in in_order for moment in (stage.begun_ns, stage.ended_ns)]
    assert moments == sorted(moments)
    assert span.begun_ns <= moments[0]
    assert moments[-1] <= span.ended_ns
    assert {stage.trace_id for stage in in_order} == {span.trace_id}


def test_http_request_is_a_tree_below_its_callers_span(traced: ServerProcess, collector: Received) -> None:
    picture = next(traced.folder.glob("*.png")).read_bytes()
    headers = {
        "Content-Type": "image/png",
        "X-Compression-Tier": "int8",
        "X-Request-Id": "picture-1",
        "traceparent": SAMPLED,
        "tracestate": "vendor=a",
    }
    answer = traced.http.post("/v2/models/fashion/infer", content=picture, headers=headers)
    assert answer.status_code == 200, answer.text

    span = collector.of_request("picture-1")
    assert (span.trace_id, span.parent_id, span.kind) == (TRACE, PARENT, SERVER)
    assert span.name == "POST /v2/models/{model}/infer"
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{span.span_id}-01"
    assert answer.headers["x-request-id"] == "picture-1"
    expected = {
        "http.request.method": "POST",
        "http.route": "/v2/models/{model}/infer",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "http.request.body.size": len(picture),
        "http.response.body.size": len(answer.content),
        "serveprune.model": "fashion",
        "serveprune.version": "1",
        "serveprune.tier.requested": "int8",
        "serveprune.tier.served": "dense",
        "serveprune.batch.rows": 1,
        "serveprune.code": "OK",
    }
    assert expected.items() <= span.attributes.items()
    assert span.attributes["serveprune.tier.reason"] == answer.json()["parameters"]["tier_reason"]
    assert span.resource["service.name"] == "shop-models"
    assert span.resource["deployment.environment.name"] == "test"
    assert span.resource["process.pid"] == traced.pid
    expect_within(span, collector.below(span), ["receive", "preprocess", "queue", "compute", "encode"])
    assert all(headers["x-tenant"] == "serving" for headers in collector.headers)

    line = access_line(traced, "picture-1")
    assert (line["trace_id"], line["span_id"]) == (TRACE, span.span_id)
    assert (line["logger"], line["level"], line["protocol"]) == ("serveprune.access", "INFO", "http")
    assert (line["model"], line["version"], line["tier_requested"], line["tier"]) == ("fashion", "1", "int8", "dense")
    assert line["tier_reason"] == span.attributes["serveprune.tier.reason"]
    assert (line["bytes_in"], line["bytes_out"], line["batch_rows"]) == (len(picture), len(answer.content), 1)
    stages = line["preprocessing_seconds"] + line["queue_seconds"] + line["compute_seconds"]
    assert 0 < stages <= line["total_seconds"]


def test_grpc_request_is_a_tree_below_its_callers_span(traced: ServerProcess, collector: Received) -> None:
    metadata = (("traceparent", SAMPLED), ("x-request-id", "call-1"))
    answer, call = traced.stub.ModelInfer.with_call(of_arrays("add", **ADD_INPUTS), metadata=metadata)
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [0, 2, 4]

    span = collector.of_request("call-1")
    trailing = dict(call.trailing_metadata())
    assert (span.trace_id, span.parent_id, span.kind) == (TRACE, PARENT, SERVER)
    assert span.name == "inference.GRPCInferenceService/ModelInfer"
    assert trailing["traceresponse"] == f"00-{TRACE}-{span.span_id}-01"
    assert trailing["x-request-id"] == "call-1"
    expected = {
        "rpc.system.name": "grpc",
        "rpc.method": "inference.GRPCInferenceService/ModelInfer",
        "rpc.response.status_code": "OK",
        "serveprune.model": "add",
        "serveprune.tier.served": "dense",
    }
    assert expected.items() <= span.attributes.items()
    expect_within(span, collector.below(span), ["receive", "queue", "compute", "encode"])
    assert access_line(traced, "call-1")["span_id"] == span.span_id


def test_large_bodies_through_asgi_are_traced_as_well(traced: ServerProcess, collector: Received) -> None:
    rows = 20_000
    inputs = [{**each, "shape": [rows // 10, 3], "data": [0] * (3 * rows // 10)} for each in ADD_REQUEST["inputs"]]
    content = json.dumps({"inputs": inputs}).ljust(2**17).encode()
    answer = traced.http.post(ADD, content=content, headers={"traceparent": SAMPLED, "x-request-id": "large"})
    assert answer.status_code == 200, answer.text

    span = collector.of_request("large")
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{span.span_id}-01"
    assert span.attributes["http.request.body.size"] == len(content)
    expect_within(span, collector.below(span), ["receive", "queue", "compute", "encode"])


def test_requests_whose_callers_are_not_sampled_have_no_span(traced: ServerProcess, collector: Received) -> None:
    first = traced.http.post(ADD, json=ADD_REQUEST, headers={"traceparent": NOT_SAMPLED, "x-request-id": "quiet"})
    traced.http.post(ADD, json=ADD_REQUEST, headers={"traceparent": SAMPLED, "x-request-id": "after-quiet"})

    collector.of_request("after-quiet")
    assert not [span for span in collector.spans if span.attributes.get("serveprune.request.id") == "quiet"]
    assert first.headers["traceresponse"].startswith(f"00-{TRACE}-")
    assert first.headers["traceresponse"].endswith("-00")


def test_refused_request_has_a_span_and_a_line_with_its_code(traced: ServerProcess, collector: Received) -> None:
    answer = traced.http.post("/v2/models/nobody/infer", json=ADD_REQUEST, headers={"x-request-id": "refused-1"})
    metadata = (("x-request-id", "refused-2"),)
    refusal = traced.grpc_refusal(of_arrays("nobody", **ADD_INPUTS), metadata=metadata)

    assert (answer.status_code, refusal.code) == (404, grpc.StatusCode.NOT_FOUND)
    assert answer.headers["x-request-id"] == "refused-1"
    assert refusal.trailing["x-request-id"] == "refused-2"
    assert collector.of_request("refused-1").attributes["http.response.status_code"] == 404
    assert collector.of_request("refused-2").attributes["rpc.response.status_code"] == "NOT_FOUND"
    line = access_line(traced, "refused-2")
    assert (line["code"], line["level"], line["model"]) == ("NOT_FOUND", "WARNING", "nobody")
    assert "nobody" in line["error"]


def test_instrumented_client_is_the_parent_of_the_servers_span(traced: ServerProcess, collector: Received) -> None:
    exported = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    with httpx.Client(base_url=traced.url, trust_env=False) as client:
        HTTPXClientInstrumentor.instrument_client(client, tracer_provider=provider)
        client.post(ADD, json=ADD_REQUEST, headers={"x-request-id": "instrumented"})
    [span] = exported.get_finished_spans()

    server_span = collector.of_request("instrumented")
    assert int(server_span.trace_id, 16) == span.context.trace_id
    assert int(server_span.parent_id, 16) == span.context.span_id
    provider.shutdown()


def test_build_is_a_span_with_its_stages(traced: ServerProcess, collector: Received) -> None:
    def of_tier() -> list[ReceivedSpan]:
        return [span for span in collector.named("build") if span.attributes["serveprune.tier"] == "int8"]

    wait_until(lambda: bool(of_tier()), what="the span of the build")
    [build] = of_tier()
    assert build.attributes["serveprune.model"] == "fashion"
    assert build.attributes["serveprune.build.outcome"] in ("built", "refused")
    stages = collector.below(build)
    expect_within(
        build,
        stages,
        [
            "looking in the store",
            "reading samples",
            "quantize",
            "measuring quality",
            "measuring batch deviation",
            "measuring latency",
            "storing",
        ],
    )
    assert not [stage for stage in stages.values() if stage.status == ERROR]


def test_reload_is_a_span_whose_lines_name_it(traced: ServerProcess, collector: Received, folder: Path) -> None:
    config = folder / "serveprune.yaml"
    before = config.read_text()
    config.write_text(before + "deployments: {add: {share: 3}}\n")
    wait_until(lambda: bool(collector.named("config reload")), what="the span of the reload")
    [span, *_] = collector.named("config reload")

    assert span.attributes["serveprune.reload.outcome"] == "applied"
    lines = [line for line in lines_of(traced) if line.get("span_id") == span.span_id]
    assert any("share" in line["message"] for line in lines), lines


def test_changes_of_a_rollout_are_spans_whose_lines_name_them(folder: Path, tmp_path: Path) -> None:
    copy_demo_data(tmp_path)
    with receiving_over_http() as received:
        config = write_config(
            tmp_path,
            store={"path": str(folder / "store")},
            server={"tracing": {"endpoint": received.endpoint}, "logs": LOGS, "admin": ADMIN},
            deployments={"fashion": {"canary": {"tier": "int8", "steps": [{"setWeight": 20}, {"pause": {}}]}}},
        )
        with ServerProcess(config, environment={**SOON, "SERVEPRUNE_ADMIN_TOKEN": OPERATORS_TOKEN}) as server:
            server.wait_open().wait_ready("fashion")
            rollout = f"http://{server.endpoints['admin_http']}/admin/rollouts/fashion"
            headers = {"Authorization": f"Bearer {OPERATORS_TOKEN}"}
            with httpx.Client(headers=headers, trust_env=False, timeout=60) as operator:
                wait_until(lambda: operator.get(rollout).json()["phase"] == "paused", what="the canary is held")
                assert operator.post(f"{rollout}/abort", json={"who": "ada", "why": "spans"}).status_code == 200
            assert server.stop() == 0
            lines = lines_of(server)

    spans = sorted(received.named("rollout change"), key=lambda span: span.begun_ns)
    audit = [json.loads(line) for line in (folder / "store" / "audit.jsonl").read_text().splitlines()]
    changes = [event for event in audit if event["event"] == "rollout"]
    told = [span.attributes for span in spans]
    assert [each["serveprune.rollout.change"] for each in told] == [change["kind"] for change in changes]
    assert [each["serveprune.rollout.canary_percent"] for each in told] == [
        change["canary_percent"] for change in changes
    ]
    assert {each["serveprune.model"] for each in told} == {"fashion"}
    assert {"step", "aborted"} <= {change["kind"] for change in changes}
    failed = {span.attributes["serveprune.rollout.change"] for span in spans if span.status == ERROR}
    assert failed == {"aborted"}
    said = {line["span_id"]: line["message"] for line in lines if "span_id" in line}
    assert all(change["text"] in said[span.span_id] for span, change in zip(spans, changes, strict=True))


def test_every_line_is_json_whatever_clients_send(traced: ServerProcess) -> None:
    hostile = ['a"b', "x" * 5000, "{}", "a b", "\x1b[31m", "é"]
    for text in hostile:
        with socket.create_connection(
            (traced.url.split("/")[-1].split(":")[0], int(traced.url.rpartition(":")[2]))
        ) as s:
            body = json.dumps(ADD_REQUEST | {"id": 'oip"id\n{'}).encode()
            head = f"POST {ADD} HTTP/1.1\r\nHost: x\r\nx-request-id: {text}\r\ntraceparent: {text}\r\n"
            s.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            head_of_answer = s.recv(65536).partition(b"\r\n\r\n")[0].decode("latin-1").lower()
        if head_of_answer.startswith("http/1.1 200"):
            [made] = [line for line in head_of_answer.split("\r\n") if line.startswith("x-request-id: ")]
            line = access_line(traced, made.removeprefix("x-request-id: "))
            assert line["code"] == "OK"
    traced.http.post("/v2/models/a%0A%22%7B/infer", json=ADD_REQUEST, headers={"x-request-id": "after-hostile"})
    access_line(traced, "after-hostile")

    for line in lines_of(traced):
        assert {"time", "level", "logger", "message"} <= set(line)


def test_last_spans_are_exported_at_the_end(folder: Path, tmp_path: Path) -> None:
    with receiving_over_http() as received:
        write_contract_models(tmp_path)
        config = write_config(
            tmp_path,
            store={"path": str(folder / "store")},
            # All of it as the environment says.
            server={"tracing": {}},
            models={"add": {"source": {"onnx": "add.onnx"}, "tiers": ["dense"]}},
        )
        environment = {**LATE, "OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint, "OTEL_SERVICE_NAME": "by-variable"}
        with ServerProcess(config, environment=environment) as server:
            server.wait_open().wait_ready("add")
            for number in range(40):
                server.http.post(ADD, json=ADD_REQUEST, headers={"x-request-id": f"last-{number}"})
            assert not received.named("compute")
            assert server.stop() == 0
        ids = {span.attributes["serveprune.request.id"] for span in received.named("POST /v2/models/{model}/infer")}

    assert ids == {f"last-{number}" for number in range(40)}
    assert {span.resource["service.name"] for span in received.spans} == {"by-variable"}


def test_server_without_its_collector_answers_and_stops(folder: Path, tmp_path: Path) -> None:
    write_contract_models(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        free = nobody.getsockname()[1]
    config = write_config(
        tmp_path,
        store={"path": str(folder / "store")},
        server={"tracing": {"endpoint": f"http://127.0.0.1:{free}"}, "drain_seconds": 2},
        models={"add": {"source": {"onnx": "add.onnx"}, "tiers": ["dense"]}},
    )
    environment = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_BSP_MAX_QUEUE_SIZE": "512"}
    with ServerProcess(config, environment=environment, options=("--log-format", "json")) as server:
        server.wait_open().wait_ready("add")
        for _ in range(400):
            assert server.http.post(ADD, json=ADD_REQUEST).status_code == 200
        wait_until(lambda: "opentelemetry" in server.log, what="a line about the collector")
        assert server.stop() == 0
        about = [line for line in lines_of(server) if line["logger"].startswith("opentelemetry")]

    # Once a minute for each logger and level, and the server has not run for longer.
    assert 1 <= len(about) <= 4, about


def test_both_processes_trace_over_grpc_and_log_as_json(tmp_path: Path) -> None:
    with receiving_over_grpc() as received, ExitStack() as opened:
        tracing = {"endpoint": received.endpoint, "protocol": "grpc"}
        config = write_models(tmp_path, server={"tracing": tracing, "logs": LOGS})
        server = opened.enter_context(ServerProcess(config, environment=SOON))
        wait_both(server.wait_open())
        for number in range(CONNECTIONS):
            headers = {"traceparent": SAMPLED, "x-request-id": f"http-{number}"}
            httpx.post(f"{server.url}{ADD}", json=ADD_REQUEST, headers=headers, trust_env=False, timeout=60)
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
            with grpc.insecure_channel(server.endpoints["grpc"], options=options) as channel:
                metadata = (("traceparent", SAMPLED), ("x-request-id", f"grpc-{number}"))
                GRPCInferenceServiceStub(channel).ModelInfer(of_arrays("add", **ADD_INPUTS), metadata=metadata)
        assert server.stop() == 0
        lines = lines_of(server)

    by_id = {span.attributes["serveprune.request.id"]: span for span in received.spans if span.kind == SERVER}
    assert set(by_id) == {f"{protocol}-{number}" for protocol in ("http", "grpc") for number in range(CONNECTIONS)}
    assert {span.parent_id for span in by_id.values()} == {PARENT}
    assert {span.resource["serveprune.process"] for span in by_id.values()} == {"0", "1"}
    assert {span.resource["process.pid"] for span in received.named("build")} == {server.pid}
    of_requests = [line for line in lines if line["logger"] == "serveprune.access"]
    assert {line["process"] for line in of_requests} == {"0", "1"}
    assert len(of_requests) == 2 * CONNECTIONS
    assert all(line["span_id"] == by_id[line["request_id"]].span_id for line in of_requests)
