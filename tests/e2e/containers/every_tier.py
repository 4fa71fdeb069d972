"""Requests to every tier of the image classifier, over both protocols."""

from pathlib import Path

from contract.grpc.messages import of_arrays

from e2e.containers.container import Container
from e2e.deployment import fashion_images

TIERS = ("dense", "int8")


def ask_every_tier(container: Container, config: Path) -> None:
    image = fashion_images(config, 1)
    for tier in TIERS:
        over_http = container.http.post(
            f"/v2/models/fashion@{tier}/infer",
            content=(config / "boot.png").read_bytes(),
            headers={"Content-Type": "image/png"},
        )
        assert over_http.status_code == 200, over_http.text
        assert over_http.headers["x-compression-tier"] == tier
        over_grpc = container.stub.ModelInfer(of_arrays(f"fashion@{tier}", image=image), timeout=60)
        assert over_grpc.parameters["tier"].string_param == tier
        assert len(over_grpc.raw_output_contents[0]) == 4 * 10
