"""From what a config says of logs and traces to what makes them, once in each process."""

from serveprune.config.server import ServerConfig
from serveprune.errors import FailedPrecondition
from serveprune.observability.logs import configure_logs
from serveprune.observability.tracing_protocol import Tracing


def start_telemetry(config: ServerConfig, *, process: str = "") -> Tracing | None:
    """Have this process log and trace as its config says; return what makes spans, if it is wanted.

    Args:
        config: Of the server.
        process: Which of several serving processes this is.

    Raises:
        FailedPrecondition: What traces need is not installed.
        InvalidArgument: A variable of the environment says something that cannot be.
    """
    tracing = _tracing(config, process=process)
    logs = config.logs
    configure_logs(
        format=logs.format,
        level=logs.level,
        process=process,
        max_lines_per_second=logs.max_lines_per_second,
        trace_ids=(lambda: None) if tracing is None else tracing.current_ids,
    )
    return tracing


def _tracing(config: ServerConfig, *, process: str) -> Tracing | None:
    wanted = config.tracing
    if wanted is None:
        return None
    try:
        from serveprune.observability.tracing import OpenTelemetry
    except ImportError as error:
        raise FailedPrecondition(
            f'server.tracing needs OpenTelemetry ({error}): pip install "serveprune[tracing]", or leave the key out'
        ) from None
    return OpenTelemetry(
        endpoint=wanted.endpoint,
        protocol=wanted.protocol,
        sample_ratio=wanted.sample_ratio,
        service_name=wanted.service_name,
        resource_attributes=wanted.resource_attributes,
        process=process,
    )
