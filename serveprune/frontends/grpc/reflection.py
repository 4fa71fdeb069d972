"""The reflection service, which lets grpcurl and its like discover what the server speaks."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serveprune.frontends.grpc.pb import open_inference_pb2
from serveprune.frontends.grpc.runtime import Server, ServicerContext
from serveprune.frontends.grpc.streams import OpenStreams

_FILES = (open_inference_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)


def add_reflection(server: Server, *, pool: ThreadPoolExecutor, streams: OpenStreams) -> None:
    """Serve the description of all services of this front end.

    Args:
        server: Not started yet.
        pool: Runs the streams; each open one occupies a thread, so it must not be the pool of inference.
        streams: Takes the open calls.
    """
    # The inference messages are not in the process-wide pool, and no other pool has all files.
    descriptors = DescriptorPool()
    for file in _FILES:
        descriptors.AddSerializedFile(file.serialized_pb)
    names = [service.full_name for file in _FILES for service in file.services_by_name.values()]
    servicer: Any = reflection.ReflectionServicer(names, pool=descriptors)

    def describe(
        requests: Iterator[reflection_pb2.ServerReflectionRequest], context: ServicerContext
    ) -> Iterator[reflection_pb2.ServerReflectionResponse]:
        streams.add(context)
        yield from servicer.ServerReflectionInfo(requests, context)

    describe.experimental_thread_pool = pool  # type: ignore[attr-defined]
    handler = grpc.stream_stream_rpc_method_handler(
        describe,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_registered_method_handlers(reflection.SERVICE_NAME, {"ServerReflectionInfo": handler})
