"""What one of several serving processes may take of what the config allows them all together. Pure."""

from serveprune.config.root import ServePruneConfig
from serveprune.config.server import ServerConfig

_DIVIDED = (
    *("executors", "grpc_workers", "max_connections", "max_buffered_bytes"),
    *("max_queued_requests", "max_queued_bytes"),
)
"""Limits on the whole server. The others bound one request or one connection, which is in one process anyway."""


def config_of_one_process(config: ServePruneConfig) -> ServePruneConfig:
    """Return the config of one process: an equal part of each limit on the whole, rounded down, at least one."""
    processes = config.server.processes
    parts: dict[str, int] = {name: _part(getattr(config.server, name), processes) for name in _DIVIDED}
    # A request that the whole server would take is not too large for any of its processes.
    parts["max_queued_bytes"] = max(
        parts["max_queued_bytes"], min(config.server.max_queued_bytes, config.server.max_request_bytes)
    )
    deployments = {
        name: deployment
        if deployment.max_queued_requests is None
        else deployment.model_copy(update={"max_queued_requests": _part(deployment.max_queued_requests, processes)})
        for name, deployment in config.deployments.items()
    }
    server = ServerConfig.model_validate(config.server.model_dump() | parts)
    return config.model_copy(update={"server": server, "deployments": deployments})


def _part(whole: int, processes: int) -> int:
    return max(1, whole // processes)
