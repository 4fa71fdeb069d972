"""From the project's errors to the status of a call; the only place that knows both."""

import math
from typing import NoReturn

import grpc

from serveprune.errors import ServePruneError
from serveprune.frontends.grpc.runtime import ServicerContext

RETRY_AFTER = "retry-after"
"""Trailing metadata: seconds after which the same call may succeed."""

_MAX_DETAILS_BYTES = 2048
"""Clients refuse trailers of more than 8 KiB, and a message may quote what the caller sent."""


def abort(context: ServicerContext, error: ServePruneError) -> NoReturn:
    """End a call with the status, message and retry time of an error."""
    metadata = trailing_metadata_of(error)
    if metadata:
        context.set_trailing_metadata((*(context.trailing_metadata() or ()), *metadata))
    context.abort(grpc.StatusCode[error.code.name], details_of(error))
    raise AssertionError("abort raises")


def trailing_metadata_of(error: ServePruneError) -> tuple[tuple[str, str], ...]:
    """Return the metadata that goes with an error: when to retry, if that helps."""
    if error.retry_after_seconds is None:
        return ()
    return ((RETRY_AFTER, str(max(1, math.ceil(error.retry_after_seconds)))),)


def details_of(error: ServePruneError) -> str:
    """Return the message of an error, no longer than clients take."""
    encoded = error.message.encode(errors="replace")
    if len(encoded) <= _MAX_DETAILS_BYTES:
        return encoded.decode()
    return encoded[:_MAX_DETAILS_BYTES].decode(errors="ignore") + " ..."
