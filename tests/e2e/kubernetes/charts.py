"""The Helm chart, rendered as `helm template` renders it."""

import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from e2e.kubernetes import helm

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
CHART = DEPLOY / "helm" / "serveprune"

VERSIONS = ("1.30", "1.37")
"""The oldest version of Kubernetes that what is in deploy/ takes, and the latest that the validator knows."""

Values = Mapping[str, Any]
Manifest = dict[str, Any]

TABLE: Mapping[str, Values] = {
    "default": {},
    "minimal": {
        "image": {"target": "serve", "digest": "sha256:" + "0" * 64},
        "podDisruptionBudget": {"enabled": False},
        "serviceAccount": {"create": False},
        "topologySpreadConstraints": [],
        "preStopSeconds": 0,
        "resources": {"requests": None, "limits": None},
        "store": {"persistentVolumeClaim": {"existingClaim": "artifacts"}},
    },
    "object store": {
        "replicas": 3,
        "image": {"target": "serve", "tag": "1"},
        "store": {"kind": "s3", "s3": {"uri": "s3://artifacts/tiers"}},
        "envFrom": [{"secretRef": {"name": "bucket"}}],
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/serveprune"}},
        "networkPolicy": {"enabled": True, "egress": [{"ports": [{"port": 443}]}]},
    },
    "stateless": {"replicas": 2, "store": {"kind": "emptyDir"}, "listenHost": "[::]", "fullnameOverride": "other"},
    "everything": {
        "nameOverride": "tiers",
        "image": {"repository": "registry.example/serveprune", "pullSecrets": [{"name": "registry"}]},
        "config": {
            "server": {"drain_seconds": 12.5, "max_queued_requests": 1000000, "processes": 2},
            "profiles": {"int8": {"passes": [{"quantize": {"scheme": "dynamic"}}]}},
            "deployments": {"minilm": {"default_tier": "dense"}},
        },
        "models": {"existingClaim": "models", "subPath": "current"},
        "store": {"persistentVolumeClaim": {"accessModes": ["ReadWriteMany"], "storageClassName": "nfs"}},
        "ports": {"http": 9080, "grpc": 9081, "metrics": 9082},
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
        "admin": {"enabled": True, "tokensSecret": "operators"},
        "tokens": {"existingSecret": "clients", "key": "all"},
        "tls": {"existingSecret": "certificate"},
        "env": [{"name": "LEVEL", "value": "1"}],
        "resources": {"requests": {"cpu": "1500m"}, "limits": {"memory": "6Gi", "cpu": "2500m"}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
        "autoscaling": {
            "enabled": True,
            "targets": {"requestsInFlight": 8, "durationP95Seconds": 0.25, "cpuPercent": 80},
        },
        "podDisruptionBudget": {"maxUnavailable": "20%"},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "networkPolicy": {
            "enabled": True,
            "clients": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}],
            "monitoring": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}],
            "operators": [{"podSelector": {"matchLabels": {"team": "c"}}}],
        },
        "podAnnotations": {"a": "b"},
        "podLabels": {"a": "b"},
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "initContainers": [
            {
                "name": "first",
                "image": "busybox",
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
        "extraVolumes": [{"name": "data", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "data", "mountPath": "/data"}],
    },
    "client certificates": {"tls": {"existingSecret": "certificate", "clientCertificates": True}},
}
"""Values that are rendered, validated, and read by the server."""


def render(values: Values, *, namespace: str = "ml") -> list[Manifest]:
    """Return all manifests of a release called `sp`."""
    rendered = helm.run(helm.render, CHART, dict(values), "sp", namespace)
    texts = [text for file, text in rendered.items() if file.endswith(".yaml")]
    return [manifest for text in texts for manifest in yaml.load_all(text, _UniqueKeys) if manifest]


class _UniqueKeys(yaml.SafeLoader):
    """As clusters read YAML: a key that comes twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key comes twice: {keys}, {node.start_mark}"
        return super().construct_mapping(node, deep)


def the(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    """Return the only manifest of a kind, or of a kind and a name."""
    (found,) = (
        each for each in manifests if each["kind"] == kind and (name is None or each["metadata"]["name"] == name)
    )
    return found


def pod_of(manifests: list[Manifest]) -> Manifest:
    pod: Manifest = the(manifests, "Deployment")["spec"]["template"]["spec"]
    return pod


def container_of(manifests: list[Manifest]) -> Manifest:
    (container,) = pod_of(manifests)["containers"]
    return dict(container)


def ports_of(container: Manifest) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container["ports"]}


class Mounts:
    """Where on this machine lies what a container would have mounted."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders

    def placed(self, text: str) -> str:
        """Return a text of the container with the paths of this machine."""
        longest_first = sorted(self._folders, key=len, reverse=True)
        pattern = "|".join(rf"{re.escape(folder)}(?![\w-])" for folder in longest_first)
        return re.sub(pattern, lambda found: str(self._folders[found[0]]), text)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at now."""
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def violations_of_restricted(pod: Manifest) -> Iterator[str]:
    """Yield what in a pod the Pod Security Standard `restricted` forbids."""
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield key
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    for volume in pod.get("volumes", ()):
        if not set(volume) - {"name"} <= allowed:
            yield f"volume {volume['name']}"
    of_pod = pod.get("securityContext", {})
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        own = container.get("securityContext", {})
        both = {**of_pod, **own}
        name = container["name"]
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: allowPrivilegeEscalation"
        if own.get("privileged"):
            yield f"{name}: privileged"
        if "ALL" not in own.get("capabilities", {}).get("drop", ()):
            yield f"{name}: capabilities.drop"
        if set(own.get("capabilities", {}).get("add", ())) - {"NET_BIND_SERVICE"}:
            yield f"{name}: capabilities.add"
        if both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0:
            yield f"{name}: runs as root"
        if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{name}: seccompProfile"
        if any("hostPort" in port for port in container.get("ports", ())):
            yield f"{name}: hostPort"
