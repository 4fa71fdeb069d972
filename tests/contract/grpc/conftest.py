from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from contract.numpy_plane import NumpyPlane
from serveprune.config.server import ServerConfig
from serveprune.errors import Code
from serveprune.frontends.grpc.pb.open_inference_pb2_grpc import GRPCInferenceServiceStub
from serveprune.frontends.grpc.server import GrpcFrontend

Start = Callable[..., "RunningFrontend"]


class RunningFrontend:
    """A front end over a numpy plane, and a client of it."""

    def __init__(self, plane: NumpyPlane, **options: Any) -> None:
        self.plane = plane
        self.rejected: list[Code] = []
        config = ServerConfig.model_validate({"grpc": "127.0.0.1:0", **options})
        self.frontend = GrpcFrontend(plane, plane, config=config, on_rejected=self.rejected.append)
        self.address = self.frontend.start()
        self.channel: Any = grpc.insecure_channel(
            str(self.address),
            # The client's own limit must not be what is tested.
            options=[("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)],
        )
        self.stub: Any = GRPCInferenceServiceStub(self.channel)

    def close(self) -> None:
        self.channel.close()
        self.frontend.stop(drain_seconds=0)


@pytest.fixture
def plane() -> Iterator[NumpyPlane]:
    plane = NumpyPlane()
    yield plane
    plane.close()


@pytest.fixture
def start(plane: NumpyPlane) -> Iterator[Start]:
    running: list[RunningFrontend] = []

    def start_one(**options: Any) -> RunningFrontend:
        running.append(RunningFrontend(plane, **options))
        return running[-1]

    yield start_one
    plane.release.set()
    for front in running:
        front.close()


@pytest.fixture
def front(start: Start) -> RunningFrontend:
    return start()
