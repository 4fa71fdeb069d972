from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from e2e.deployment import DYNAMIC_INT8
from e2e.graphs import CARRIER_WIDTH, write_carrier_model, write_contract_models, write_slow_model
from e2e.ray_serve.hosted import HostedOnRay
from e2e.served import Served
from e2e.server_process import ServerProcess
from serveprune.artifacts.builder import BuildRequest
from serveprune.artifacts.store import ArtifactStore
from serveprune.compression.build import build
from serveprune.config.loading import load_config

QUICKLY = {"upscale_delay_s": 0.5, "metrics_interval_s": 0.5, "look_back_period_s": 1.0}


@pytest.fixture(scope="package")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostedOnRay]:
    """One cluster: the models of the contract, one with a tier that it builds itself, a slow one, one without room."""
    config, names = write_site(tmp_path_factory.mktemp("ray"))
    arguments = {
        "ingress": {"num_cpus": 0.5},
        "packing": {"share": names},
        "autoscaling": {"*": {"min_replicas": 1, "max_replicas": 1}, "slow": {"max_replicas": 2, **QUICKLY}},
    }
    with HostedOnRay(config, **arguments) as running:
        # While the nodes start.
        import_models(config)
        running.deploy(**{"homeless@dense": {"ray_actor_options": {"resources": {"no such thing": 1}}}})
        yield running.wait_running().wait_ready("carrier", "slow", *names)


@pytest.fixture(scope="package")
def server(hosted: HostedOnRay) -> Served:
    """What the tests of the contract ask."""
    return hosted


@pytest.fixture(scope="package")
def alone(hosted: HostedOnRay) -> Iterator[ServerProcess]:
    """Our own server over the same config and store, which has nothing to build once the cluster has."""
    with ServerProcess(hosted.folder / "serveprune.yaml") as running:
        yield running.wait_open().wait_ready("carrier", "slow")


def write_site(folder: Path) -> tuple[Path, list[str]]:
    """Write models and config; return the config and the names of the contract's models."""
    names = write_contract_models(folder)
    write_slow_model(folder / "slow.onnx")
    write_carrier_model(folder / "carrier.onnx")
    random = np.random.default_rng(3)
    numbers, rows = np.arange(64, dtype=np.int64)[:, np.newaxis], random.normal(size=(64, CARRIER_WIDTH))
    np.savez(folder / "samples.npz", id=numbers, x=rows.astype(np.float32))
    document = {
        "store": {"path": "store"},
        "profiles": {"int8": DYNAMIC_INT8},
        "models": {
            # First, so that it is the first one to be brought up.
            "homeless": {"source": {"onnx": "slow.onnx"}},
            "carrier": {
                "source": {"onnx": "carrier.onnx"},
                "evaluation": {"file": "samples.npz"},
                "tiers": ["dense", "int8"],
            },
            **{name: {"source": {"onnx": f"{name}.onnx"}} for name in (*names, "slow")},
        },
    }
    file = folder / "serveprune.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return file, names


def import_models(file: Path) -> None:
    """Build the dense tier of every model, so that the cluster has only `int8` to build."""
    config = load_config(file)
    store = ArtifactStore(config.store.folder, max_bytes=config.store.max_bytes)
    for name in config.models:
        request = BuildRequest(model_name=name, model=config.model(name))
        build(request, store=store, threads=1, threads_of_serving=1, on_progress=lambda _: None)
