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
    if error.retry_after_seconds is not None:
        seconds = max(1, math.ceil(error.retry_after_seconds))
        context.set_trailing_metadata(((RETRY_AFTER, str(seconds)),))
    context.abort(grpc.StatusCode[error.code.name], _details(error.message))
    raise AssertionError("abort raises")


def _details(message: str) -> str:
    encoded = message.encode(errors="replace")
    if len(encoded) <= _MAX_DETAILS_BYTES:
        return message
    return encoded[:_MAX_DETAILS_BYTES].decode(errors="ignore") + " ..."
