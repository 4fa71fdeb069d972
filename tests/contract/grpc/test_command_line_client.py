import numpy as np

from contract.grpc.conftest import RunningFrontend
from serveprune.cli.client import GrpcClient
from serveprune.oip.tensor import Tensor


def test_parameters_keep_their_types_on_the_way_to_the_data_plane(front: RunningFrontend) -> None:
    client = GrpcClient(str(front.address))
    sent = {"tier": "int8", "strict_tier": True, "max_latency_ms": 50.0, "min_quality": 0.95}
    terms = [Tensor.of(name, np.ones((1, 3), np.float32)) for name in "ab"]
    try:
        answer = client.infer("add", terms, parameters=sent)
    finally:
        client.close()

    (request,) = front.plane.requests
    assert request.parameters == sent
    assert type(request.parameters["strict_tier"]) is bool
    assert answer.tier == "int8"
