"""Traces for an OpenTelemetry collector. Imported only where they are wanted: it needs the extra ``tracing``."""

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_PROTOCOL,
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
    OTEL_SERVICE_NAME,
)
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from serveprune import __version__
from serveprune.errors import InvalidArgument
from serveprune.observability.request_record import RequestRecord
from serveprune.observability.tracing_protocol import Attributes, OpenSpan

_log = logging.getLogger(__name__)

_NOTHING = Context()
"""What the thread of a front end may be within has nothing to do with a request."""

_HTTP, _GRPC = "http/protobuf", "grpc"
_TRACES_PATH = "/v1/traces"
_FAULTS_OF_THE_SERVER = frozenset(
    ("INTERNAL", "DATA_LOSS", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "UNKNOWN")
)
"""What conventions call an error of a server's span; the rest is its caller's."""


class OpenTelemetry:
    """Makes spans and has them exported, by threads of this process; see `Tracing`. Thread-safe.

    What is not given is as the variables ``OTEL_*`` say, and then as the SDK has it.

    Args:
        endpoint: Of the collector.
        protocol: ``http/protobuf`` or ``grpc``.
        sample_ratio: Share of the traces that begin here; those that began elsewhere are sampled as they were there.
        service_name: What traces call this server.
        resource_attributes: What else each says of it.
        process: Which of several serving processes this is.

    Raises:
        InvalidArgument: A variable names another protocol.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        protocol: str | None = None,
        sample_ratio: float | None = None,
        service_name: str | None = None,
        resource_attributes: Mapping[str, str] | None = None,
        process: str = "",
    ) -> None:
        resource = _resource(service_name, resource_attributes or {}, process=process)
        sampler = None if sample_ratio is None else ParentBased(TraceIdRatioBased(sample_ratio))
        # Its end waits for the collector, with no more patience than the server has left.
        self._provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_exporter(endpoint, protocol)))
        self._tracer = self._provider.get_tracer("serveprune", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, record: RequestRecord, carrier: Mapping[str, str]) -> None:
        """Begin the server's span of a request, below that of its caller if it names one."""
        span = record.span = self._tracer.start_span(
            _name_of(record),
            context=self._propagator.extract(carrier, _NOTHING) if carrier else _NOTHING,
            kind=SpanKind.SERVER,
            attributes=_attributes_at_begin(record),
            start_time=record.received_ns,
        )
        record.is_traced = span.is_recording()
        context = span.get_span_context()
        if context.is_valid:
            record.trace_response = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def end(self, record: RequestRecord) -> None:
        """End the span of a request, with the stages that it went through below it."""
        span = record.span
        if span is None or record.ended is None:
            return
        span.set_attributes(_attributes_at_end(record))
        if record.code in _FAULTS_OF_THE_SERVER:
            span.set_status(Status(StatusCode.ERROR, record.error))
            span.set_attribute("error.type", record.code)
        within = trace.set_span_in_context(span, Context())
        for name, begun, ended, attributes in stages_of(record):
            stage = self._tracer.start_span(name, context=within, attributes=attributes, start_time=record.ns_of(begun))
            stage.end(record.ns_of(ended))
        span.end(record.ns_of(record.ended))

    @contextmanager
    def span(self, name: str, attributes: Attributes) -> Iterator[OpenSpan]:
        """See `Tracing.span`."""
        with self._tracer.start_as_current_span(name, attributes=attributes) as span:
            yield _OpenSpan(self._tracer, span)

    def ids_of(self, record: RequestRecord) -> tuple[str, str] | None:
        """See `Tracing.ids_of`."""
        return None if record.span is None else _digits(record.span.get_span_context())

    def current_ids(self) -> tuple[str, str] | None:
        """See `Tracing.current_ids`."""
        return _digits(trace.get_current_span().get_span_context())

    def close(self, *, timeout_seconds: float) -> None:
        """Export what has ended, for so long at the most; idempotent."""
        # The SDK's own patience is half a minute.
        thread = threading.Thread(target=self._provider.shutdown, name="tracing-end", daemon=True)
        thread.start()
        thread.join(timeout_seconds)
        if thread.is_alive():
            _log.warning("the collector did not take the last spans within %.1f s; they are lost", timeout_seconds)


class _OpenSpan:
    """See `OpenSpan`."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span

    def note(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def stage(self, name: str, *, begun_ns: int, ended_ns: int, failure: str | None = None) -> None:
        within = trace.set_span_in_context(self._span, Context())
        stage = self._tracer.start_span(name, context=within, start_time=begun_ns)
        if failure is not None:
            stage.set_status(Status(StatusCode.ERROR, failure))
        stage.end(ended_ns)

    def failed(self, reason: str) -> None:
        self._span.set_status(Status(StatusCode.ERROR, reason))


Stage = tuple[str, float, float, dict[str, AttributeValue]]


def stages_of(record: RequestRecord) -> list[Stage]:
    """Return what a request went through, as far as it got: name, begin, end, attributes.

    Moments are on ``time.monotonic()``, in order, and none lies outside of the request.
    """
    stages: list[Stage] = []
    ended = record.ended
    assert ended is not None
    if record.admitted is not None:
        stages.append(("receive", record.received, min(record.admitted, ended), {}))
    settled = record.settled
    if settled is None or record.admitted is None or settled > ended:
        return stages
    begins = max(record.admitted, settled - sum(each or 0.0 for each in _seconds_of(record)))
    for name, seconds in zip(("preprocess", "queue", "compute"), _seconds_of(record), strict=True):
        if seconds is not None:
            ends = min(begins + seconds, settled)
            stages.append((name, begins, ends, {}))
            begins = ends
    if record.batch_rows is not None:
        stages[-1][3]["serveprune.batch.rows"] = record.batch_rows
        stages.append(("encode", settled, ended, {}))
    return stages


def _seconds_of(record: RequestRecord) -> tuple[float | None, float | None, float | None]:
    return record.preprocessing_seconds, record.queue_seconds, record.compute_seconds


def _digits(context: trace.SpanContext) -> tuple[str, str] | None:
    return (f"{context.trace_id:032x}", f"{context.span_id:016x}") if context.is_valid else None


def _name_of(record: RequestRecord) -> str:
    return record.method if record.protocol == "grpc" else f"POST {record.method}"


def _attributes_at_begin(record: RequestRecord) -> dict[str, AttributeValue]:
    if record.protocol == "grpc":
        return {"rpc.system.name": "grpc", "rpc.method": record.method}
    return {"http.request.method": "POST", "http.route": record.method, "url.scheme": record.scheme}


def _attributes_at_end(record: RequestRecord) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue | None] = {
        "rpc.response.status_code": record.code if record.protocol == "grpc" else None,
        "http.response.status_code": record.status,
        "http.request.body.size": record.bytes_in if record.protocol == "http" else None,
        "http.response.body.size": record.bytes_out if record.protocol == "http" else None,
        "serveprune.request.id": record.request_id,
        "serveprune.model": record.model or None,
        "serveprune.version": record.version or None,
        "serveprune.tier.requested": record.tier_requested or None,
        "serveprune.tier.served": record.tier or None,
        "serveprune.tier.reason": record.tier_reason or None,
        "serveprune.batch.rows": record.batch_rows,
        "serveprune.code": record.code,
    }
    return {name: value for name, value in found.items() if value is not None}


def _resource(service_name: str | None, attributes: Mapping[str, str], *, process: str) -> Resource:
    said = Resource.create()  # what the environment says
    own: dict[str, AttributeValue] = {"service.version": __version__, "process.pid": os.getpid()}
    if process:
        own["serveprune.process"] = process
    own |= attributes
    if service_name is not None:
        own[SERVICE_NAME] = service_name
    elif SERVICE_NAME not in own and _is_unnamed(said):
        own[SERVICE_NAME] = "serveprune"
    return said.merge(Resource(own))


def _is_unnamed(said: Resource) -> bool:
    name = str(said.attributes.get(SERVICE_NAME, ""))
    return not os.environ.get(OTEL_SERVICE_NAME) and name.startswith("unknown_service")


def _exporter(endpoint: str | None, protocol: str | None) -> SpanExporter:
    environment = os.environ
    said = environment.get(OTEL_EXPORTER_OTLP_TRACES_PROTOCOL) or environment.get(OTEL_EXPORTER_OTLP_PROTOCOL)
    wanted = protocol or said or _HTTP
    if wanted == _GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint=endpoint)
    if wanted != _HTTP:
        raise InvalidArgument(
            f"{OTEL_EXPORTER_OTLP_PROTOCOL}: expected {_HTTP} or {_GRPC}, got {wanted!r}; mend it, or set "
            "server.tracing.protocol"
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    if endpoint is not None and urlsplit(endpoint).path in ("", "/"):
        endpoint = endpoint.rstrip("/") + _TRACES_PATH
    return HttpExporter(endpoint=endpoint)
