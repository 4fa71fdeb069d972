"""What operators copy from `deploy/ray/`, by Ray's own schema."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serveprune.handlers.ray_serve.application import INGRESS, application
from serveprune.handlers.ray_serve.settings import settings_of

FOLDER = Path(__file__).resolve().parents[4] / "deploy" / "ray"


def serve_file() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((FOLDER / "serve.yaml").read_text(encoding="utf-8"))
    return document


def test_serve_file_is_one_for_ray_and_for_the_application() -> None:
    schema = ServeDeploySchema.model_validate(serve_file())
    (said,) = schema.applications
    assert [each.name for each in said.deployments] == [INGRESS]
    module, _, name = said.import_path.partition(":")
    assert getattr(importlib.import_module(module), name) is application
    settings_of(said.args)
    for each in schema.grpc_options.grpc_servicer_functions:
        module, _, name = each.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))


def test_kuberay_manifest_serves_what_the_serve_file_does() -> None:
    manifest = yaml.safe_load((FOLDER / "rayservice.yaml").read_text(encoding="utf-8"))
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    inner = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(inner)
    assert inner == serve_file()
    cluster = manifest["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        spec = group["template"]["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]


def test_schema_refuses_what_is_wrong() -> None:
    document = serve_file()
    document["applications"][0]["import_path"] = "serveprune"
    with pytest.raises(ValueError, match="import_path"):
        ServeDeploySchema.model_validate(document)
