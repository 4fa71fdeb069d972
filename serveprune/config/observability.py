"""What a server tells of itself beyond its metrics: traces and logs."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from serveprune.config.base import ConfigModel
from serveprune.config.numbers import PositiveNumber, Share, WholeNumber
from serveprune.config.problem import description

_URL = re.compile(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", re.IGNORECASE)


def _url(value: Any) -> Any:
    # A password in it would be shown with the config; the exporter takes headers from the environment.
    if isinstance(value, str) and _URL.fullmatch(value):
        return value
    raise ValueError(f'expected a URL such as "http://127.0.0.1:4318", without user or query, got {description(value)}')


CollectorUrl = Annotated[
    str,
    BeforeValidator(_url),
    WithJsonSchema({"type": "string", "format": "uri", "examples": ["http://127.0.0.1:4318"]}),
]


class TracingConfig(ConfigModel):
    """Traces to an OpenTelemetry collector: docs/tracing.md. What is left out is as the OTEL_* variables say."""

    endpoint: CollectorUrl | None = Field(
        default=None,
        description="Of the collector; over HTTP, `/v1/traces` is added where it has no path. Default: "
        "OTEL_EXPORTER_OTLP_ENDPOINT, or this machine.",
    )
    protocol: Literal["http/protobuf", "grpc"] | None = Field(
        default=None, description="OTLP over HTTP or gRPC. Default: OTEL_EXPORTER_OTLP_PROTOCOL, or http/protobuf."
    )
    sample_ratio: Share | None = Field(
        default=None,
        description="Share of the requests that are traced; one whose caller says whether it is follows that. "
        "Default: OTEL_TRACES_SAMPLER, or all.",
    )
    service_name: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="`service.name` of the traces. Default: OTEL_SERVICE_NAME, or serveprune."
    )
    resource_attributes: dict[str, str] = Field(
        default={}, description="What else each trace says of this server, beside OTEL_RESOURCE_ATTRIBUTES."
    )


class AccessLogConfig(ConfigModel):
    """A line of the log for requests: docs/logs.md."""

    sample_ratio: Share = Field(default=0.0, description="Share of all requests that get a line.")
    slow_seconds: PositiveNumber | None = Field(
        default=None, description="Requests that take as long as this get one in any case. Default: none do."
    )
    errors: bool = Field(default=True, description="So do requests that fail.")


class LogsConfig(ConfigModel):
    """Lines on standard error: docs/logs.md."""

    format: Literal["text", "json"] = Field(default="text", description="One JSON object a line, or text.")
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lines below it are left out."
    )
    max_lines_per_second: WholeNumber = Field(
        default=100,
        ge=1,
        le=100_000,
        description="On average; more are left out and counted. Of the lines for requests, and of all others.",
    )
    access: AccessLogConfig | None = Field(default=None, description="Lines for requests. Default: none.")
