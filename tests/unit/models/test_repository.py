from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from unit.artifacts.artifact_factory import commit_tier

from serveprune.artifacts.store import Artifact, ArtifactStore
from serveprune.backends.onnx_runtime import OnnxRuntimeBackend, OnnxRuntimeSession
from serveprune.backends.openvino import OpenVinoSession
from serveprune.backends.protocol import Backend
from serveprune.backends.selection import load_backend
from serveprune.errors import FailedPrecondition, NotFound
from serveprune.models.instance import BatchSettings, Instance
from serveprune.models.repository import VariantRepository


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store", max_bytes=2**30)


@pytest.fixture
def repository(store: ArtifactStore) -> VariantRepository:
    return VariantRepository(store, load_backend, threads=1, any_environment=False)


@pytest.fixture
def artifact(store: ArtifactStore) -> Artifact:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return commit_tier(store, content=model.SerializeToString())


def load(repository: VariantRepository, artifact: Artifact) -> Instance:
    return repository.load(artifact, identity=("boots", "1", "int8"), batches=BatchSettings(4), dense=None)


def test_artifact_is_leased_while_its_instance_is_open(
    store: ArtifactStore, repository: VariantRepository, artifact: Artifact
) -> None:
    instance = load(repository, artifact)
    assert instance.batchable
    assert instance.run({"x": np.full((1, 4), -1, np.float32)})[0].tolist() == [[0.0] * 4]
    assert store.is_leased(artifact.key)
    instance.retire()
    assert not store.is_leased(artifact.key)


def test_lease_is_given_back_when_the_first_run_fails_unexpectedly(
    store: ArtifactStore, repository: VariantRepository, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Instance) -> None:
        raise MemoryError

    monkeypatch.setattr(Instance, "warm", fail)
    with pytest.raises(MemoryError):
        load(repository, artifact)
    assert not store.is_leased(artifact.key)


def test_load_does_not_find_an_artifact_that_was_evicted_meanwhile(
    store: ArtifactStore, repository: VariantRepository, artifact: Artifact
) -> None:
    ArtifactStore(store.root, max_bytes=1).collect_garbage()
    with pytest.raises(NotFound, match="built again"):
        load(repository, artifact)


def test_log_is_named_relative_to_the_store(store: ArtifactStore, repository: VariantRepository) -> None:
    log = store.failure_log("boots-int8")
    assert repository.name_of(log) == str(log.relative_to(store.root))
    assert repository.name_of(Path("/elsewhere/build.log")) == "build.log"


def test_artifact_is_run_by_the_backend_that_is_named(repository: VariantRepository, artifact: Artifact) -> None:
    instance = repository.load(
        artifact, identity=("boots", "1", "int8"), batches=BatchSettings(4), dense=None, backend="openvino"
    )
    assert isinstance(instance._session, OpenVinoSession)
    assert instance.batchable
    assert instance.run({"x": np.full((1, 4), -1, np.float32)})[0].tolist() == [[0.0] * 4]
    instance.retire()


def test_dense_is_refused_and_given_back_when_its_backend_does_not_agree(
    store: ArtifactStore, artifact: Artifact, tmp_path: Path
) -> None:
    class Negating(OnnxRuntimeBackend):
        def load(self, path: Path, *, threads: int = 1) -> OnnxRuntimeSession:
            model = onnx.load(path)
            model.graph.node[0].op_type = "Neg"
            onnx.save(model, tmp_path / "negated.onnx")
            return super().load(tmp_path / "negated.onnx", threads=threads)

    def backend(name: str) -> Backend:
        return Negating() if name == "negating" else load_backend(name)

    repository = VariantRepository(store, backend, threads=1, any_environment=False)
    with pytest.raises(FailedPrecondition, match="backend negating answers otherwise than ONNX Runtime"):
        repository.load(
            artifact, identity=("boots", "1", "dense"), batches=BatchSettings(4), dense=None, backend="negating"
        )
    assert not store.is_leased(artifact.key)
