"""What operators copy from `deploy/ray/`, by Ray's own schema."""

import importlib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import ray
import yaml
from e2e.kubernetes.charts import VERSIONS, violations_of_restricted
from ray.serve.schema import ServeDeploySchema

from serveprune.config.surroundings import STORE
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
    assert manifest["spec"]["rayClusterConfig"]["rayVersion"] == ray.__version__


@pytest.mark.parametrize("group", ["head", "tiers"])
def test_kuberay_pods_are_such_as_a_restricted_namespace_takes(group: str) -> None:
    cluster = yaml.safe_load((FOLDER / "rayservice.yaml").read_text(encoding="utf-8"))["spec"]["rayClusterConfig"]
    groups = {"head": cluster["headGroupSpec"], **{each["groupName"]: each for each in cluster["workerGroupSpecs"]}}
    spec = groups[group]["template"]["spec"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": group}, "spec": spec}
    for version in VERSIONS:
        kubernetes_validate.validate(pod, version, strict=True)
    assert list(violations_of_restricted(spec)) == []
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsUser"]
    (container,) = spec["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    (mount,) = container["volumeMounts"]
    assert environment[STORE].startswith(f"{mount['mountPath']}/")
    assert serve_file()["applications"][0]["args"]["config"].startswith(f"{mount['mountPath']}/")
    # What KubeRay adds to the pod.
    autoscaler = {"name": "autoscaler", **cluster["autoscalerOptions"]}
    assert list(violations_of_restricted({**spec, "containers": [autoscaler]})) == []


def test_schema_refuses_what_is_wrong() -> None:
    document = serve_file()
    document["applications"][0]["import_path"] = "serveprune"
    with pytest.raises(ValueError, match="import_path"):
        ServeDeploySchema.model_validate(document)
