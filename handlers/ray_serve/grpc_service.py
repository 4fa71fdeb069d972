"""What Ray Serve's gRPC proxy is told of the Open Inference Protocol."""

from collections.abc import Callable
from typing import Any

import grpc

from serveprune.frontends.grpc.inference import SERVICE

METHODS = (
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelInfer",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
)


def add_inference_service(servicer: Any, server: grpc.Server) -> None:
    """Register the methods; for `grpc_servicer_functions` of a Ray Serve config.

    Messages pass the proxy as bytes, and are decoded once, in the ingress.
    """
    handlers = {name: grpc.unary_unary_rpc_method_handler(_method(servicer, name)) for name in METHODS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _method(servicer: Any, name: str) -> Callable[..., Any]:
    method: Callable[..., Any] = getattr(servicer, name)
    return method
