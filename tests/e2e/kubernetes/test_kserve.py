"""KServe's manifests are what its SDK takes, and a server started with their arguments does what KServe asks for."""

import json
import subprocess
from pathlib import Path
from typing import Any

import grpc
import httpx
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from unit.graph.huggingface_folders import write_bert, write_tokenizer

from e2e.conftest import Serve
from e2e.deployment import FASHION, copy_demo_data
from e2e.kubernetes.charts import DEPLOY, Manifest, Mounts, free_ports, the, violations_of_restricted
from e2e.server_process import PATIENCE_SECONDS, ServerProcess, wait_until
from e2e.test_reload import write_adder
from serveprune import __version__

KSERVE = DEPLOY / "kserve"
RUNTIMES = KSERVE / "serving-runtimes.yaml"
CLUSTER_RUNTIMES = KSERVE / "cluster-serving-runtimes.yaml"
SERVICES = KSERVE / "inference-services.yaml"
CLIENTS = Path(__file__).resolve().parents[1] / "clients"


def read(file: Path) -> list[Manifest]:
    return [manifest for manifest in yaml.safe_load_all(file.read_text()) if manifest]


def run(python: Path, script: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [str(python), str(CLIENTS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_manifests_are_as_the_sdk_has_them(clients_python: Path, tmp_path: Path) -> None:
    finished = run(clients_python, "kserve_manifests.py", RUNTIMES, CLUSTER_RUNTIMES, SERVICES)
    assert finished.returncode == 0, finished.stderr
    assert "9 are" in finished.stdout

    wrong = read(RUNTIMES)[1]
    wrong["spec"]["supportedModelFormat"] = wrong["spec"].pop("supportedModelFormats")
    wrong["spec"]["containers"][0]["volumeMounts"][0].pop("name")
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    refused = run(clients_python, "kserve_manifests.py", tmp_path / "wrong.yaml")
    assert refused.returncode == 1
    assert "has no field supportedModelFormat" in refused.stderr
    assert "containers[0].volumeMounts[0]" in refused.stderr


def test_cluster_runtimes_say_the_same() -> None:
    own, cluster = read(RUNTIMES), read(CLUSTER_RUNTIMES)
    assert [each["kind"] for each in own] == ["ConfigMap", "ServingRuntime", "ServingRuntime"]
    assert [each["kind"] for each in cluster] == ["ConfigMap", "ClusterServingRuntime", "ClusterServingRuntime"]
    assert [each.get("spec", each.get("data")) for each in own] == [
        each.get("spec", each.get("data")) for each in cluster
    ]


def test_runtimes_fit_the_services_that_name_them() -> None:
    runtimes = {each["metadata"]["name"]: each["spec"] for each in read(RUNTIMES)[1:]}
    for spec in runtimes.values():
        (container,) = spec["containers"]
        assert container["name"] == "kserve-container"
        assert container["image"] == f"serveprune:{__version__}-full"
        assert list(violations_of_restricted(spec)) == []
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}
    for service in read(SERVICES):
        model = service["spec"]["predictor"]["model"]
        runtime = runtimes[model["runtime"]]
        assert model["protocolVersion"] in runtime["protocolVersions"]
        assert model["modelFormat"]["name"] in {each["name"] for each in runtime["supportedModelFormats"]}


class Predictor:
    """A pod of an InferenceService, on free ports of this machine."""

    def __init__(self, folder: Path, service: str) -> None:
        self.name = service
        self.models = folder / "models"
        model = the(read(SERVICES), "InferenceService", service)["spec"]["predictor"]["model"]
        manifests = read(RUNTIMES)
        (self.container,) = the(manifests, "ServingRuntime", model["runtime"])["spec"]["containers"]
        self.ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
        mounts = Mounts(
            {"/mnt/models": self.models, "/etc/serveprune": folder, "/var/lib/serveprune": folder / "store"}
        )
        config = the(manifests, "ConfigMap")["data"]["serveprune.yaml"]
        (folder / "serveprune.yaml").write_text(mounts.placed(config))
        # What KServe does with its template.
        texts = (argument.replace("{{.Name}}", service) for argument in self.container["args"])
        self.arguments = [self._listening_here(mounts.placed(text)) for text in texts]
        self.models.mkdir()

    def _listening_here(self, argument: str) -> str:
        fronts = {"0.0.0.0:8080": "http", "0.0.0.0:8081": "grpc", "0.0.0.0:8082": "metrics"}
        return f"127.0.0.1:{self.ports[fronts[argument]]}" if argument in fronts else argument

    def started(self, serve: Serve) -> ServerProcess:
        command, config, *options = self.arguments
        assert command == "serve"
        server = serve(Path(config), options=tuple(options), on_free_ports=False).wait_open()
        addresses = {name: f"127.0.0.1:{port}" for name, port in self.ports.items()}
        assert addresses | {"url": f"http://{addresses['http']}"} == server.endpoints
        return server

    def is_ready(self) -> bool:
        """Ask what the readiness probe asks."""
        probe = self.container["readinessProbe"]
        (port,) = self.container["ports"]
        if "grpc" in probe:
            assert (probe["grpc"]["port"], port["name"]) == (port["containerPort"], "h2c") == (8081, "h2c")
            with grpc.insecure_channel(
                f"127.0.0.1:{self.ports['grpc']}", options=[("grpc.enable_http_proxy", 0)]
            ) as channel:
                said = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            return bool(said.status == health_pb2.HealthCheckResponse.SERVING)
        assert (probe["httpGet"]["port"], port["name"]) == (port["containerPort"], "http1") == (8080, "http1")
        url = f"http://127.0.0.1:{self.ports['http']}{probe['httpGet']['path']}"
        return httpx.get(url, trust_env=False, timeout=60).status_code == 200

    def asked(self, python: Path, folder: Path, given: dict[str, Any]) -> list[list[int]]:
        """Return the shapes of the answer to an input, by KServe's clients over both protocols."""
        addresses = {name: f"127.0.0.1:{port}" for name, port in self.ports.items()}
        (folder / "directions.json").write_text(json.dumps({**addresses, "name": self.name, "input": given}))
        finished = run(python, "kserve_contract.py", folder / "directions.json")
        assert finished.returncode == 0, finished.stderr
        shapes: list[list[int]] = json.loads(finished.stdout)
        return shapes


def test_bare_graph_is_served_under_the_name_of_the_service(serve: Serve, tmp_path: Path, clients_python: Path) -> None:
    predictor = Predictor(tmp_path, "fashion-onnx")
    write_adder(predictor.models / "model.onnx", 1)
    predictor.started(serve)
    wait_until(predictor.is_ready, what="the pod is ready")
    given = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0.0, 1.0, 2.0, 3.0]}
    assert predictor.asked(clients_python, tmp_path, given) == [[1, 4]]


def test_hugging_face_folder_is_served_with_its_tokenizer(serve: Serve, tmp_path: Path, clients_python: Path) -> None:
    predictor = Predictor(tmp_path, "minilm")
    predictor.models.rmdir()
    write_bert(predictor.models)
    write_tokenizer(predictor.models)
    predictor.started(serve)
    wait_until(predictor.is_ready, what="the pod is ready")
    given = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["the cat sat", "a long day"]}
    shapes = predictor.asked(clients_python, tmp_path, given)
    # As many vectors as texts, each as wide as the network.
    assert shapes
    assert all((shape[0], shape[-1]) == (2, 16) for shape in shapes), shapes


def test_tiers_are_made_that_the_file_beside_the_model_names(
    serve: Serve, tmp_path: Path, clients_python: Path
) -> None:
    predictor = Predictor(tmp_path, "fashion")
    copy_demo_data(predictor.models)
    (predictor.models / "serveprune.yaml").write_text(yaml.safe_dump(FASHION))
    server = predictor.started(serve)
    # Ready is who answers, and tiers are made meanwhile.
    wait_until(predictor.is_ready, what="the pod is ready")
    server.wait_ready("fashion")
    assert server.http.get("/v2/models/fashion@int8/ready").status_code == 200
    picture = (predictor.models / "boot.png").read_bytes()
    answer = server.http.post("/v2/models/fashion@int8/infer", content=picture, headers={"content-type": "image/png"})
    assert answer.json()["parameters"]["tier"] == "int8"
    given = {"name": "image", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": [0.0] * 784}
    assert predictor.asked(clients_python, tmp_path, given) == [[1, 10]]


def test_folder_without_a_model_ends_the_start_and_says_why(serve: Serve, tmp_path: Path) -> None:
    _, config, *options = Predictor(tmp_path, "fashion-onnx").arguments
    server = serve(Path(config), options=tuple(options), on_free_ports=False)
    assert server.process.wait(PATIENCE_SECONDS) == 2
    assert "model fashion-onnx: expected model.onnx" in server.log
