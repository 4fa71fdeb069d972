"""The Helm chart is what clusters take, and what the server does."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from e2e.kubernetes import helm
from e2e.kubernetes.charts import (
    CHART,
    DEPLOY,
    TABLE,
    VERSIONS,
    Manifest,
    Mounts,
    Values,
    container_of,
    pod_of,
    ports_of,
    render,
    the,
    violations_of_restricted,
)
from e2e.monitoring import alerts, prometheus_tool
from serveprune import __version__
from serveprune.config.loading import load_config
from serveprune.config.root import ServePruneConfig
from serveprune.observability.metrics import METRICS
from serveprune.supervision import supervisor

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}


def _strict(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


_RULE = _strict(
    ["expr"],
    alert={"type": "string"},
    record={"type": "string"},
    expr={"type": "string"},
    **{"for": {"type": "string"}, "keep_firing_for": {"type": "string"}},
    labels=_TEXTS,
    annotations=_TEXTS,
)
SPECS_OF_THE_OPERATOR = {
    "ServiceMonitor": _strict(
        ["selector", "endpoints"],
        selector=_strict(["matchLabels"], matchLabels=_TEXTS),
        endpoints={
            "type": "array",
            "minItems": 1,
            "items": _strict(
                ["port"],
                port={"type": "string"},
                path={"type": "string"},
                interval={"pattern": r"^\d+(ms|s|m|h)$"},
                relabelings={
                    "type": "array",
                    "items": _strict(["targetLabel"], targetLabel={"type": "string"}, replacement={"type": "string"}),
                },
            ),
        },
    ),
    "PrometheusRule": _strict(
        ["groups"],
        groups={
            "type": "array",
            "minItems": 1,
            "items": _strict(
                ["name", "rules"],
                name={"type": "string"},
                interval={"type": "string"},
                rules={"type": "array", "items": _RULE},
            ),
        },
    ),
}
"""No package at hand carries the schemas of the operator: these are the fields that the chart uses, as documented."""


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Manifest]]:
    return {case: render(values) for case, values in TABLE.items()}


def load(manifests: list[Manifest], folder: Path) -> ServePruneConfig:
    """Read the config that the chart makes as the server does, with what would be mounted."""
    mounts = Mounts({"/run/serveprune": folder / "run", "/var/lib/serveprune": folder / "store", "/models": folder})
    for secret in ("tls/tls.crt", "tls/tls.key", "tls/ca.crt", "tokens/tokens", "admin/tokens"):
        (folder / "run" / secret).parent.mkdir(parents=True, exist_ok=True)
        (folder / "run" / secret).write_text("content")
    file = folder / "serveprune.yaml"
    file.write_text(mounts.placed(the(manifests, "ConfigMap")["data"]["serveprune.yaml"]))
    return load_config(file, environment={})


@pytest.mark.parametrize("case", TABLE)
def test_lint_finds_nothing(case: str) -> None:
    report = helm.run(helm.lint, CHART, dict(TABLE[case]), namespace="ml", kube_version="v1.30.0")
    assert report["errors"] == []
    # Only a picture is missed.
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_valid(rendered: dict[str, list[Manifest]], version: str) -> None:
    # Many are the same in several cases, and reading a schema takes its time.
    distinct = {json.dumps(manifest, sort_keys=True): case for case in rendered for manifest in rendered[case]}
    for text, case in distinct.items():
        manifest = json.loads(text)
        schema = SPECS_OF_THE_OPERATOR.get(manifest["kind"])
        try:
            if schema is None:
                kubernetes_validate.validate(manifest, version, strict=True)
            else:
                jsonschema.validate(manifest["spec"], schema)
                assert manifest["apiVersion"] == "monitoring.coreos.com/v1"
        except jsonschema.ValidationError as error:
            raise AssertionError(f"{case}: {manifest['kind']} {manifest['metadata']['name']}: {error}") from error


def test_bucket_is_the_store_and_copies_are_where_a_pod_may_write(
    rendered: dict[str, list[Manifest]], tmp_path: Path
) -> None:
    store = load(rendered["object store"], tmp_path).store

    assert store.path == "s3://artifacts/tiers"
    assert store.folder == tmp_path / "store"


def test_validator_refuses_what_is_misspelt() -> None:
    deployment = the(render({"extraVolumeMounts": [{"name": "a", "mountPoint": "/a"}]}), "Deployment")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)


def test_table_renders_every_template(rendered: dict[str, list[Manifest]]) -> None:
    kinds = {manifest["kind"] for manifest in rendered["everything"]} | {"PersistentVolumeClaim"}
    kinds |= {manifest["kind"] for manifest in rendered["default"]}
    assert kinds == {
        *("ConfigMap", "Deployment", "Service", "ServiceAccount", "PersistentVolumeClaim", "HorizontalPodAutoscaler"),
        *("PodDisruptionBudget", "ServiceMonitor", "PrometheusRule", "NetworkPolicy"),
    }


@pytest.mark.parametrize("case", TABLE)
def test_pods_satisfy_the_restricted_standard(rendered: dict[str, list[Manifest]], case: str) -> None:
    pod = pod_of(rendered[case])
    assert list(violations_of_restricted(pod)) == []
    assert pod["automountServiceAccountToken"] is False
    assert container_of(rendered[case])["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("case", TABLE)
def test_config_is_what_the_pod_offers(rendered: dict[str, list[Manifest]], case: str, tmp_path: Path) -> None:
    manifests = rendered[case]
    config, container = load(manifests, tmp_path), container_of(manifests)
    server = config.server
    ports = {"http": server.http.port, "grpc": server.grpc.port, "metrics": server.metrics.port}
    if server.admin is not None:
        ports |= {"admin-http": server.admin.http.port, "admin-grpc": server.admin.grpc.port}
    assert ports_of(container) == ports
    offered = {
        port["targetPort"]: port["port"]
        for each in manifests
        if each["kind"] == "Service"
        for port in each["spec"]["ports"]
    }
    assert offered == ports
    assert {server.http.host, server.grpc.host, server.metrics.host} <= {"0.0.0.0", "::"}

    # Every mount has its volume, and what the config names is mounted.
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod_of(manifests)["volumes"]}
    assert all("subPath" not in mount for mount in container["volumeMounts"] if mount["name"] != "models")
    files = re.findall(r"/run/serveprune/\S+", the(manifests, "ConfigMap")["data"]["serveprune.yaml"])
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert {str(Path(file).parent) for file in files} == {path for path in paths if path.startswith("/run/")}


@pytest.mark.parametrize("case", TABLE)
def test_pod_is_given_the_time_that_a_stop_takes(
    rendered: dict[str, list[Manifest]], case: str, tmp_path: Path
) -> None:
    pod, container = pod_of(rendered[case]), container_of(rendered[case])
    drain = load(rendered[case], tmp_path).server.drain_seconds
    before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    # A supervisor's is the longer of the two.
    margin = supervisor._STOP_MARGIN_SECONDS + supervisor._KILL_SECONDS
    assert pod["terminationGracePeriodSeconds"] >= before + drain + margin


def test_large_numbers_arrive_as_they_were_given(rendered: dict[str, list[Manifest]], tmp_path: Path) -> None:
    server = load(rendered["everything"], tmp_path).server
    assert (server.max_queued_requests, server.drain_seconds) == (1_000_000, 12.5)


def test_values_of_the_documentation_are_read_by_the_server(tmp_path: Path) -> None:
    text = (DEPLOY.parent / "docs" / "kubernetes.md").read_text()
    found = re.search(r"```yaml\n# values.yaml\n(.*?)```", text, re.DOTALL)
    assert found is not None
    for file in ("fashion.onnx", "calibration.npz", "evaluation.npz"):
        (tmp_path / file).write_text("content")
    config = load(render(yaml.safe_load(found[1])), tmp_path)
    assert config.model("fashion").tiers == ("dense", "int8")


@pytest.mark.parametrize(
    ("resources", "executors"),
    [
        ({"requests": {"cpu": "1500m"}}, 2),
        ({"requests": {"cpu": 2}, "limits": {"cpu": "0.5"}}, 1),
        ({"requests": {"cpu": "2"}, "limits": {"cpu": 3.2}}, 4),
    ],
)
def test_executors_are_the_cores_of_the_container(resources: Values, executors: int, tmp_path: Path) -> None:
    assert load(render({"resources": resources}), tmp_path).server.executors == executors


def test_only_what_needs_a_restart_replaces_the_pods() -> None:
    def template(config: Values) -> Manifest:
        found: Manifest = the(render({"config": config}), "Deployment")["spec"]["template"]
        return found

    profiles = {"int8": {"passes": [{"quantize": {"scheme": "dynamic"}}]}}
    former = template({})
    assert template({"profiles": profiles, "models": {"m": {"source": {"onnx": "/m.onnx"}}}}) == former
    for section in ({"server": {"processes": 2}}, {"builds": {"threads": 2}}, {"repository": {"poll_seconds": 9}}):
        assert template(section) != former


def test_volume_that_is_mounted_once_is_released_before_the_next_pod_starts() -> None:
    def strategy(*modes: str) -> str:
        values = {"store": {"persistentVolumeClaim": {"accessModes": list(modes)}}}
        kind: str = the(render(values), "Deployment")["spec"]["strategy"]["type"]
        return kind

    assert strategy("ReadWriteOnce") == "Recreate"
    assert strategy("ReadWriteMany") == "RollingUpdate"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replica": 2}, "additional properties 'replica' not allowed"),
        ({"image": {"target": "small"}}, "image/target"),
        ({"ports": {"http": 80800}}, "ports/http"),
        ({"store": {"kind": "nfs"}}, "store/kind"),
        ({"store": {"kind": "s3", "s3": {"uri": "https://bucket"}}}, "store/s3/uri"),
        ({"config": {"modles": {}}}, "additional properties 'modles' not allowed"),
        ({"config": {"store": {"path": "/elsewhere"}}}, "additional properties 'path' not allowed"),
        ({"replicas": 2}, "expected ReadWriteMany for 2 pods, got ReadWriteOnce"),
        ({"autoscaling": {"enabled": True}}, "expected ReadWriteMany for 6 pods, got ReadWriteOnce"),
        ({"store": {"kind": "s3"}}, "store.s3.uri: expected s3://BUCKET/PREFIX"),
        (
            {"store": {"kind": "emptyDir"}, "image": {"target": "serve"}},
            "store.kind: expected persistentVolumeClaim or s3",
        ),
        ({"config": {"server": {"http": "0.0.0.0:1"}}}, "config.server.http: expected nothing"),
        ({"admin": {"enabled": True}}, "admin.tokensSecret: expected the name of a Secret"),
        ({"tls": {"clientCertificates": True}}, "tls.clientCertificates: expected tls.existingSecret"),
        ({"ports": {"http": 8081}}, "ports: expected different ones"),
        (
            {"store": {"kind": "emptyDir"}, "autoscaling": {"enabled": True, "minReplicas": 7}},
            "expected minReplicas of at most maxReplicas, got 7 and 6",
        ),
        (
            {"store": {"kind": "emptyDir"}, "autoscaling": {"enabled": True, "targets": {"queueP95Seconds": None}}},
            "autoscaling.targets: expected at least one",
        ),
    ],
)
def test_bad_values_are_refused(values: Values, said: str) -> None:
    with pytest.raises(helm.Refused, match=re.escape(said)):
        render(values)


def test_every_value_is_described_and_known_to_the_schema() -> None:
    values, schema, metadata = helm.run(helm.description, CHART)
    assert schema is not None

    def missing(value: Any, of: Any, path: str) -> list[str]:
        if "properties" not in of:
            return []
        assert of["additionalProperties"] is False, path
        unknown = [f"{path}.{key}" for key in value if key not in of["properties"]]
        return unknown + [
            each
            for key in value
            if key in of["properties"]
            for each in missing(value[key], of["properties"][key], f"{path}.{key}")
        ]

    # `resources` may name devices.
    strict = {key: value for key, value in schema["properties"].items() if key != "resources"}
    assert missing(values, {**schema, "properties": {**strict, "resources": {}}}, "") == []
    assert set(schema["properties"]) - {"global"} == set(values)
    assert (metadata["version"], metadata["appVersion"]) == (__version__, __version__)


def test_rules_are_those_of_prometheus_itself(rendered: dict[str, list[Manifest]], tmp_path: Path) -> None:
    spec = the(rendered["everything"], "PrometheusRule")["spec"]
    files = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
    assert files
    assert spec["groups"] == [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]

    tool = prometheus_tool("promtool")
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(spec))
    subprocess.run([tool, "check", "rules", str(tmp_path / "rules.yml")], check=True, capture_output=True, timeout=60)


def test_service_monitor_finds_the_service_with_metrics_and_no_other(rendered: dict[str, list[Manifest]]) -> None:
    manifests = rendered["everything"]
    monitor = the(manifests, "ServiceMonitor")["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    found = [each for each in manifests if each["kind"] == "Service" and wanted <= each["metadata"]["labels"].items()]
    assert [service["metadata"]["name"] for service in found] == ["sp-tiers-metrics"]
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in {port["name"] for port in found[0]["spec"]["ports"]}


def test_each_release_is_a_job_that_the_alerts_know(rendered: dict[str, list[Manifest]]) -> None:
    (endpoint,) = the(rendered["everything"], "ServiceMonitor")["spec"]["endpoints"]
    (job,) = (each["replacement"] for each in endpoint["relabelings"] if each["targetLabel"] == "job")
    # Whatever its name, here one without the word.
    assert job == "serveprune/ml/sp-tiers"
    known = set(re.findall(r'job=~"(.*?)"', json.dumps(alerts()).replace('\\"', '"')))
    assert known
    assert [pattern for pattern in known if not re.fullmatch(pattern, job)] == []


def test_only_inference_is_reached_from_outside(rendered: dict[str, list[Manifest]]) -> None:
    services = [each["spec"] for each in rendered["everything"] if each["kind"] == "Service"]
    outside = [
        port["name"] for spec in services if spec.get("type", "ClusterIP") != "ClusterIP" for port in spec["ports"]
    ]
    assert outside == ["http", "grpc"]


def adapter_rules() -> list[dict[str, Any]]:
    values = yaml.safe_load((DEPLOY / "helm" / "prometheus-adapter.yaml").read_text())
    rules: list[dict[str, Any]] = values["rules"]["custom"]
    return rules


def series_of(rule: dict[str, Any]) -> str:
    found = re.search(r'__name__="(\w+)"', rule["seriesQuery"])
    assert found is not None
    return found[1]


def test_adapter_makes_what_the_autoscaler_asks_for_from_series_that_there_are() -> None:
    kinds = {metric.name: metric.kind for metric in METRICS}
    series = {f"{name}_bucket" if kind == "histogram" else name for name, kind in kinds.items()}
    rules = adapter_rules()
    assert {series_of(rule) for rule in rules} <= series
    for rule in rules:
        assert re.fullmatch(rule["name"]["matches"], series_of(rule))
    targets = {"requestsInFlight": 8, "durationP95Seconds": 0.25, "queueP95Seconds": 0.001}
    values = {"store": {"kind": "emptyDir"}, "autoscaling": {"enabled": True, "targets": targets}}
    asked = the(render(values), "HorizontalPodAutoscaler")["spec"]["metrics"]
    wanted = {each["pods"]["metric"]["name"]: each["pods"]["target"]["averageValue"] for each in asked}
    assert wanted == {
        "serveprune_requests_in_flight": "8000m",
        "serveprune_request_duration_p95_seconds": "250m",
        "serveprune_request_queue_p95_seconds": "1m",
    }
    assert set(wanted) == {rule["name"]["as"] for rule in rules}


def test_queries_of_the_adapter_give_one_number_for_each_pod(tmp_path: Path) -> None:
    """Run by Prometheus' own test tool: pod `busy` has requests, pod `idle` had one long ago."""
    tool = prometheus_tool("promtool")
    matchers = {"<<.LabelMatchers>>": 'namespace="ml",pod=~"busy|idle"', "<<.GroupBy>>": "pod"}
    inputs, tests = [], []
    for rule in adapter_rules():
        series, query = series_of(rule), rule["metricsQuery"].replace("<<.Series>>", series_of(rule))
        for placeholder, text in matchers.items():
            query = query.replace(placeholder, text)
        assert "<<" not in query
        labels = 'namespace="ml",model="m",version="1"'
        if series.endswith("_bucket"):
            for bound, step in (("0.1", 0), ("0.2", 60), ("+Inf", 60)):
                for tier in ("dense", "int8"):
                    own = f'{labels},tier="{tier}",le="{bound}"'
                    inputs.append({"series": f'{series}{{{own},pod="busy"}}', "values": f"0+{step}x10"})
                    inputs.append({"series": f'{series}{{{own},pod="idle"}}', "values": "1x10"})
            # 95 % of the way from 0.1 to 0.2, where all requests are.
            expected = (0.195, 0)
        else:
            for pod, value in (("busy", 7), ("idle", 0)):
                inputs.append({"series": f'{series}{{{labels},pod="{pod}"}}', "values": f"{value}x10"})
            expected = (7, 0)
        samples = [
            {"labels": f'{{pod="{pod}"}}', "value": value}
            for pod, value in zip(("busy", "idle"), expected, strict=True)
        ]
        tests.append({"expr": query, "eval_time": "10m", "exp_samples": samples})
    document = {
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": inputs, "promql_expr_test": tests}],
    }
    (tmp_path / "test.yml").write_text(json.dumps(document))
    finished = subprocess.run(
        [tool, "test", "rules", str(tmp_path / "test.yml")], capture_output=True, text=True, timeout=60
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
