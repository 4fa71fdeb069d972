"""The image is what KServe's runtimes ask for: started as a pod of an InferenceService is, and asked by the SDK."""

import json
from pathlib import Path

import httpx

from e2e.containers.container import Container
from e2e.containers.engine import Engine
from e2e.containers.images import FULL
from e2e.kubernetes.charts import the
from e2e.kubernetes.test_kserve import RUNTIMES, read, run
from e2e.test_reload import write_adder

SERVICE = "adder"


def test_container_obeys_the_contract_of_kserve(images: Engine, clients_python: Path, tmp_path: Path) -> None:
    manifests = read(RUNTIMES)
    runtime = the(manifests, "ServingRuntime", "serveprune")["spec"]
    (pod,) = runtime["containers"]
    folders = {name: tmp_path / name for name in ("etc", "models")}
    for folder in folders.values():
        folder.mkdir(mode=0o755)
    (folders["etc"] / "serveprune.yaml").write_text(the(manifests, "ConfigMap")["data"]["serveprune.yaml"])
    write_adder(folders["models"] / "model.onnx", 1)
    options = [
        *("--volume", f"{folders['models']}:/mnt/models:ro", "--tmpfs", "/tmp"),
        *("--user", str(pod["securityContext"]["runAsUser"])),
        *(word for each in pod["env"] for word in ("--env", f"{each['name']}={each['value']}")),
    ]
    arguments = [argument.replace("{{.Name}}", SERVICE) for argument in pod["args"]]
    with Container(
        images, FULL, config=folders["etc"], store="kserve", options=options, arguments=arguments
    ) as container:
        url = f"http://{container.addresses['http']}"
        assert pod["readinessProbe"]["httpGet"]["port"] == 8080
        probe = f"{url}{pod['readinessProbe']['httpGet']['path']}"
        container.wait(lambda: httpx.get(probe, trust_env=False).status_code == 200, what="the pod is ready")
        given = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0.0, 1.0, 2.0, 3.0]}
        directions = {"http": container.addresses["http"], "grpc": container.addresses["grpc"], "name": SERVICE}
        (tmp_path / "directions.json").write_text(json.dumps({**directions, "input": given}))

        asked = run(clients_python, "kserve_contract.py", tmp_path / "directions.json")

        assert asked.returncode == 0, asked.stderr
        assert json.loads(asked.stdout) == [[1, 4]]
