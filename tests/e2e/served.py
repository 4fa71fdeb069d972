"""What tests ask of a server, however it is run."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import grpc
import httpx
from google.protobuf.message import Message
from prometheus_client.parser import text_string_to_metric_families

from serveprune.frontends.grpc.pb.open_inference_pb2_grpc import GRPCInferenceServiceStub

PATIENCE_SECONDS = 120.0
"""How long a test waits for what must happen; far beyond what an idle machine needs."""


@dataclass(frozen=True, slots=True)
class GrpcRefusal:
    """The error of a gRPC call."""

    code: grpc.StatusCode
    details: str
    trailing: Mapping[str, str]


class Served(ABC):
    """Clients of a running server."""

    @property
    @abstractmethod
    def endpoints(self) -> Mapping[str, str]:
        """Addresses by `http`, `grpc` and `metrics`."""

    @property
    def url(self) -> str:
        return f"http://{self.endpoints['http']}"

    @cached_property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE_SECONDS, trust_env=False)

    @cached_property
    def channel(self) -> Any:
        options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
        return grpc.insecure_channel(self.endpoints["grpc"], options=options)

    @cached_property
    def stub(self) -> Any:
        return GRPCInferenceServiceStub(self.channel)

    def grpc_refusal(self, message: Message, *, metadata: Sequence[tuple[str, str]] = ()) -> GrpcRefusal:
        """Send an inference that must be refused."""
        try:
            self.stub.ModelInfer(message, metadata=metadata)
        except grpc.RpcError as raised:
            error: Any = raised
            return GrpcRefusal(error.code(), error.details(), dict(error.trailing_metadata()))
        raise AssertionError("the server answered what it should refuse")

    def tiers(self, model: str) -> dict[str, dict[str, Any]]:
        answer = self.http.get(f"/v2/models/{model}/tiers")
        assert answer.status_code == 200, answer.text
        return {tier["tier"]: tier for tier in answer.json()["tiers"]}

    def metrics_text(self) -> str:
        return httpx.get(f"http://{self.endpoints['metrics']}/metrics", trust_env=False, timeout=20).text

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples that have at least these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.metrics_text())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def close_clients(self) -> None:
        for name in ("http", "channel"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()
