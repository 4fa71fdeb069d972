"""How a request names its tier, or what it demands instead, over each way that TorchServe has."""

import json
from typing import Any

import numpy as np
import pytest

from e2e.deployment import fashion_images
from e2e.torchserve.messages import image_field, predict
from e2e.torchserve.torchserve_process import TorchServeProcess


def ask(server: TorchServeProcess, *, said: dict[str, Any] | None = None, **request: Any) -> Any:
    body = image_field(server.folder)["json"]
    return server.ask("fashion", json={**body, **(said or {})}, **request)


def npy(server: TorchServeProcess) -> bytes:
    import io

    stream = io.BytesIO()
    np.save(stream, fashion_images(server.folder, 1))
    return stream.getvalue()


@pytest.mark.parametrize(
    "name", ["x-compression-tier", "X-Compression-Tier", "X-COMPRESSION-TIER", "x-Compression-tIER"]
)
def test_header_chooses_the_tier_in_any_spelling(torchserve: TorchServeProcess, name: str) -> None:
    answer = ask(torchserve, headers={name: "int8"})

    assert answer.status_code == 200, answer.text
    assert answer.headers["x-compression-tier"] == "int8"
    assert answer.headers["x-compression-tier-reason"]


def test_default_tier_serves_when_none_is_asked_for(torchserve: TorchServeProcess) -> None:
    assert ask(torchserve).headers["x-compression-tier"] == "dense"


@pytest.mark.parametrize("path", ["/1.0/tier/int8", "/1.0/tier/int8/"])
def test_path_chooses_the_tier(torchserve: TorchServeProcess, path: str) -> None:
    answer = ask(torchserve, path=path)

    assert answer.status_code == 200, answer.text
    assert answer.headers["x-compression-tier"] == "int8"


def test_path_without_a_tier_is_refused_when_it_goes_on(torchserve: TorchServeProcess) -> None:
    answer = ask(torchserve, path="/1.0/color/blue")

    assert answer.status_code == 400
    assert "tier/TIER" in answer.json()["error"]


def test_field_of_json_chooses_the_tier(torchserve: TorchServeProcess) -> None:
    assert ask(torchserve, said={"tier": "int8"}).headers["x-compression-tier"] == "int8"


def test_query_of_invocations_chooses_the_tier(torchserve: TorchServeProcess) -> None:
    # Of /predictions TorchServe does not hand it on.
    params = {"model_name": "fashion", "tier": "int8"}
    answer = torchserve.http.post("/invocations", params=params, content=npy(torchserve))

    assert answer.status_code == 200, answer.text
    assert answer.headers["x-compression-tier"] == "int8"


def test_field_of_a_form_chooses_the_tier(torchserve: TorchServeProcess) -> None:
    answer = torchserve.ask("fashion", data={"tier": "int8"}, files={"image": npy(torchserve)})

    assert answer.status_code == 200, answer.text
    assert answer.headers["x-compression-tier"] == "int8"


def test_parameter_of_the_protocol_chooses_the_tier(torchserve: TorchServeProcess) -> None:
    image = fashion_images(torchserve.folder, 1)
    given = {"name": "image", "datatype": "FP32", "shape": list(image.shape), "data": image.ravel().tolist()}

    answer = torchserve.ask("fashion", json={"id": "7", "inputs": [given], "parameters": {"tier": "int8"}})

    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["id"] == "7"
    assert said["parameters"]["tier"] == "int8"
    assert said["outputs"][0]["shape"] == [1, 10]


def test_entry_of_grpc_chooses_the_tier(torchserve: TorchServeProcess) -> None:
    # In this form the answer says which tier it is from.
    image = fashion_images(torchserve.folder, 1)
    given = {"name": "image", "datatype": "FP32", "shape": list(image.shape), "data": image.ravel().tolist()}
    document = json.dumps({"inputs": [given]}).encode()

    answers = [
        json.loads(predict(torchserve, "fashion", entries))
        for entries in (
            {"data": document},
            {"data": document, "tier": b"int8"},
            {"image": npy(torchserve), "tier": b"nothing"},
        )
    ]

    assert answers[0]["parameters"]["tier"] == "dense"
    assert answers[1]["parameters"]["tier"] == "int8"
    assert "nothing" in answers[2]["error"]


def test_unknown_tier_is_not_found(torchserve: TorchServeProcess) -> None:
    answer = ask(torchserve, headers={"x-compression-tier": "int4"})

    assert answer.status_code == 404
    assert "dense, int8" in answer.json()["error"]


def test_tiers_that_disagree_are_refused(torchserve: TorchServeProcess) -> None:
    answer = ask(torchserve, headers={"x-compression-tier": "int8"}, said={"tier": "dense"})

    assert answer.status_code == 400
    assert "more than one tier" in answer.json()["error"]


@pytest.mark.parametrize(
    "request_",
    [
        {"headers": {"X-Min-Quality": "1"}},
        {"said": {"min_quality": 1}},
    ],
)
def test_lowest_quality_of_one_is_served_by_dense(torchserve: TorchServeProcess, request_: dict[str, Any]) -> None:
    answer = ask(torchserve, **request_)

    assert answer.status_code == 200, answer.text
    assert answer.headers["x-compression-tier"] == "dense"


@pytest.mark.parametrize("request_", [{"headers": {"X-Max-Latency-Ms": "0"}}, {"said": {"max_latency_ms": -1}}])
def test_latency_that_nothing_has_is_refused(torchserve: TorchServeProcess, request_: dict[str, Any]) -> None:
    answer = ask(torchserve, **request_)

    assert answer.status_code == 400
    assert "max_latency_ms" in answer.json()["error"]


def test_objectives_are_given_as_the_reason(torchserve: TorchServeProcess) -> None:
    answer = ask(torchserve, headers={"x-max-latency-ms": "10000", "x-min-quality": "0.5"})

    assert answer.status_code == 200, answer.text
    assert answer.headers["x-compression-tier"] in ("dense", "int8")
    assert answer.headers["x-compression-tier-reason"].startswith("objective: ")


def test_explanations_are_refused(torchserve: TorchServeProcess) -> None:
    answer = torchserve.http.post("/explanations/fashion", json=image_field(torchserve.folder)["json"])

    assert answer.status_code == 501


def test_description_of_the_model_says_how_its_tiers_stand(torchserve: TorchServeProcess) -> None:
    (described,) = torchserve.management.get("/models/fashion", params={"customized": "true"}).json()

    tiers = {tier["tier"]: tier for tier in described["customizedMetadata"]["tiers"]}
    assert {name: tier["state"] for name, tier in tiers.items()} == {"dense": "ready", "int8": "ready"}
    assert tiers["int8"]["quality"]["top1_agreement"] > 0.97
