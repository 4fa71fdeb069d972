"""What one of several serving processes may take of what the config allows them all together."""

from serveprune.config.root import ServePruneConfig

_DIVIDED = ("executors", "grpc_workers", "max_queued_requests", "max_buffered_bytes")
"""Limits on the whole server. The others bound one request or one connection, which is in one process anyway."""


def config_of_one_process(config: ServePruneConfig) -> ServePruneConfig:
    """Return the config of one process: an equal part of each limit on the whole, rounded down, at least one."""
    server = config.server
    parts = {name: max(1, getattr(server, name) // server.processes) for name in _DIVIDED}
    divided = type(server).model_validate(server.model_dump() | parts)
    return config.model_copy(update={"server": divided})
