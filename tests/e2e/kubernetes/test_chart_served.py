"""A server is started as the chart's pod would start it, with what would be mounted in folders of this machine."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from contract.certificates import Authority

from e2e.conftest import Serve
from e2e.kubernetes.charts import Manifest, Mounts, Values, container_of, free_ports, ports_of, render, the
from e2e.server_process import ServerProcess, wait_until
from e2e.test_reload import SUCCESSFUL, ask, write_adder

TOKEN = "token-of-a-client-0001"
OPERATOR = "token-of-an-operator-01"


class MountedConfigMap:
    """A volume of a ConfigMap as the kubelet keeps it: all its files change at once, by one link that is turned."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._versions = 0
        folder.mkdir()

    def write(self, files: dict[str, str]) -> None:
        """Do what the kubelet's atomic writer does, in its order."""
        former = self.folder / "..data"
        old = former.resolve() if former.is_symlink() else None
        self._versions += 1
        payload = self.folder / f"..2026_01_01_00_00_00.{self._versions:09}"
        payload.mkdir()
        for name, text in files.items():
            (payload / name).write_text(text)
            (payload / name).chmod(0o444)
        turned = self.folder / "..data_tmp"
        turned.symlink_to(payload.name)
        turned.replace(former)
        for name in files:
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(Path("..data", name))
        if old is not None:
            for file in old.iterdir():
                file.unlink()
            old.rmdir()


class Pod:
    """The chart's container on free ports of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        names = ("http", "grpc", "metrics", "adminHttp", "adminGrpc")
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.config = MountedConfigMap(folder / "etc")
        self._mounts = Mounts(
            {
                "/etc/serveprune": folder / "etc",
                "/var/lib/serveprune": folder / "store",
                "/models": folder / "models",
                "/run/serveprune": folder / "run",
            }
        )
        (folder / "models").mkdir()

    def render(self, values: Values) -> list[Manifest]:
        """Render the chart with these values, and mount its config."""
        manifests = render({"listenHost": "127.0.0.1", "ports": self._ports, **values})
        data = the(manifests, "ConfigMap")["data"]
        self.config.write({name: self._mounts.placed(text) for name, text in data.items()})
        return manifests

    @contextmanager
    def started(self, serve: Serve, manifests: list[Manifest]) -> Iterator[ServerProcess]:
        command, *arguments = container_of(manifests)["args"]
        assert command == "serve"
        config, *options = (self._mounts.placed(argument) for argument in arguments)
        yield serve(Path(config), options=tuple(options), on_free_ports=False).wait_open()


def asked_by_kubelet(container: Manifest, probe: str) -> httpx.Response:
    """Ask what a probe asks, as the kubelet does: no certificate is checked, and no token is sent."""
    get = container[probe]["httpGet"]
    url = f"{get['scheme'].lower()}://127.0.0.1:{ports_of(container)[get['port']]}{get['path']}"
    return httpx.get(url, verify=False, trust_env=False, timeout=60)


def test_probes_are_answered_and_the_config_is_changed_without_a_restart(serve: Serve, tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    for addend in (1, 2):
        write_adder(tmp_path / "models" / f"add{addend}.onnx", addend)

    def values(addend: int) -> dict[str, Any]:
        model = {"source": {"onnx": f"/models/add{addend}.onnx"}, "version": str(addend)}
        return {"config": {"models": {"adder": model}, "repository": None}}

    manifests = pod.render(values(1))
    container = container_of(manifests)
    with pod.started(serve, manifests) as server:
        assert asked_by_kubelet(container, "startupProbe").json() == {"live": True}
        assert asked_by_kubelet(container, "livenessProbe").json() == {"live": True}
        wait_until(lambda: asked_by_kubelet(container, "readinessProbe").status_code == 200, what="the pod is ready")
        assert ask(server, "adder") == 1.0
        ports = ports_of(container)
        addresses = {name: each for name, each in server.endpoints.items() if name != "url"}
        assert {name: int(each.rpartition(":")[2]) for name, each in addresses.items()} == ports
        endpoint = f"http://127.0.0.1:{ports['metrics']}/metrics"
        assert "serveprune_requests_in_flight" in httpx.get(endpoint, trust_env=False, timeout=60).text

        changed = pod.render(values(2))
        assert the(changed, "Deployment") == the(manifests, "Deployment")
        wait_until(lambda: ask(server, "adder") == 2.0, what="the changed ConfigMap is served")
        assert server.metric(SUCCESSFUL) == 1
        assert asked_by_kubelet(container, "readinessProbe").json() == {"ready": True}

        pod.config.write({"serveprune.yaml": "models: {adder: {}}"})
        wait_until(lambda: server.metric(SUCCESSFUL) == 0, what="a bad ConfigMap is rejected")
        assert ask(server, "adder") == 2.0
        assert server.stop() == 0, server.log


def test_secured_pod_is_probed_without_a_token_and_asked_with_one(serve: Serve, tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    issued = Authority(tmp_path / "authority").issue("server")
    for file, text in (
        ("tls/tls.crt", issued.certificate.read_text()),
        ("tls/tls.key", issued.key.read_text()),
        ("tokens/tokens", TOKEN),
        ("admin/tokens", OPERATOR),
    ):
        (tmp_path / "run" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / file).write_text(text)
    secrets = {"tls": {"existingSecret": "certificate"}, "tokens": {"existingSecret": "clients"}}
    manifests = pod.render({**secrets, "admin": {"enabled": True, "tokensSecret": "operators"}})
    container = container_of(manifests)
    trusted = ssl.create_default_context(cafile=str(tmp_path / "authority" / "authority.crt"))
    trusted.check_hostname = False
    with pod.started(serve, manifests), httpx.Client(verify=trusted, trust_env=False, timeout=60) as client:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert asked_by_kubelet(container, probe).status_code == 200
        ports = ports_of(container)
        index = f"https://127.0.0.1:{ports['http']}/v2/repository/index"
        assert client.post(index).status_code == 401
        assert client.post(index, headers={"authorization": f"Bearer {TOKEN}"}).json() == []
        reloads = f"https://127.0.0.1:{ports['admin-http']}/admin/config"
        assert client.get(reloads, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 401
        assert client.get(reloads, headers={"authorization": f"Bearer {OPERATOR}"}).status_code == 200
