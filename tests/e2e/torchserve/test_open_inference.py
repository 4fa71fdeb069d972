"""TorchServe's own Open Inference Protocol, as far as that goes."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract.cases import Case, WireTensor
from contract.grpc.messages import typed_message

from e2e.deployment import fashion_images
from e2e.torchserve.conftest import archive_fashion, wait_tier
from e2e.torchserve.messages import image_field
from e2e.torchserve.torchserve_process import TorchServeProcess
from serveprune.frontends.grpc.pb import open_inference_pb2 as pb
from serveprune.oip.tensor import Array

_INFER = "/org.pytorch.serve.grpc.openinference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def server(python: Path, fashion_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServeProcess]:
    """A server that speaks that protocol, too."""
    folder = tmp_path_factory.mktemp("oip")
    store = shutil.copytree(fashion_store, folder / "artifacts")
    archive_fashion(folder, python=python, store=store)
    with TorchServeProcess(folder, environment={"TS_OPEN_INFERENCE_PROTOCOL": "oip"}) as running:
        wait_tier(running.wait_ready("fashion"), "fashion", "int8", **image_field(folder))
        yield running


def infer(server: TorchServeProcess, image: Array) -> Any:
    # The package of its service is its own, the messages are those of the protocol.
    call = server.channel.unary_unary(
        _INFER,
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )
    return call(typed_message(Case("", "fashion", (WireTensor.of("image", image),))), timeout=60)


def test_rest_call_is_answered_with_tier_and_reason(server: TorchServeProcess) -> None:
    image = fashion_images(server.folder, 1)
    given = {"name": "image", "datatype": "FP32", "shape": list(image.shape), "data": image.ravel().tolist()}
    document = {"inputs": [given], "parameters": {"tier": "int8"}}

    answer = server.http.post("/v2/models/fashion/infer", json=document)

    assert answer.status_code == 200, answer.text
    assert answer.json()["parameters"]["tier"] == "int8"
    assert answer.headers["x-compression-tier"] == "int8"
    assert answer.json()["outputs"][0]["shape"] == [1, 10]


def test_grpc_call_is_answered(server: TorchServeProcess) -> None:
    image = fashion_images(server.folder, 1)

    answer = infer(server, image)

    plain = server.ask("fashion", json={"image": image.tolist()}).json()["logits"]
    assert (answer.model_name, list(answer.outputs[0].shape)) == ("fashion", [1, 10])
    np.testing.assert_allclose(answer.outputs[0].contents.fp32_contents, plain[0], atol=1e-4)


def test_grpc_call_that_is_wrong_is_told_why_and_the_worker_lives(server: TorchServeProcess) -> None:
    before = server.worker_pids("fashion")

    answer = infer(server, np.ones((1, 3), dtype=np.float32))

    assert [output.name for output in answer.outputs] == ["error"]
    assert b"expected shape" in answer.outputs[0].contents.bytes_contents[0]
    assert infer(server, fashion_images(server.folder, 1)).outputs[0].name == "logits"
    assert server.worker_pids("fashion") == before
