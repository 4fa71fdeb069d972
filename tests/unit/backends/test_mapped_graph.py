import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from unit.artifacts.artifact_factory import digest, tier_manifest

from serveprune.artifacts.graph_file import store_graph
from serveprune.artifacts.store import Artifact, ArtifactStore, file_records
from serveprune.backends.mapped_graph import MappedOnnxRuntimeBackend
from serveprune.backends.onnx_runtime import OnnxRuntimeBackend, OnnxRuntimeSession
from serveprune.errors import ResourceExhausted

WIDTH = 1024
FEEDS = {"x": np.random.default_rng(3).normal(size=(5, WIDTH)).astype(np.float32)}


def commit_graph(
    store: ArtifactStore, *, zeros: bool = False, width: int = WIDTH, element: int = TensorProto.FLOAT
) -> Artifact:
    """Store a graph with one weight of (width, width)."""
    weight = np.random.default_rng(0).normal(size=(width, width)).astype(np.float32)
    if zeros:
        weight[np.abs(weight) < 1.5] = 0
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in "xy"]
    inputs = values[:1]
    if element == TensorProto.STRING:
        inputs = [*inputs, helper.make_tensor_value_info("text", TensorProto.STRING, ["batch"])]
        nodes.append(helper.make_node("Identity", ["text"], ["echo"]))
        values.append(helper.make_tensor_value_info("echo", TensorProto.STRING, ["batch"]))
    graph = helper.make_graph(nodes, "layer", inputs, values[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with store.staging() as folder:
        onnx.save(model, folder / "model.onnx")
        store_graph(folder / "model.onnx")
        return store.commit(folder, tier_manifest(file_records(folder), recipe=digest(f"{zeros}{width}{element}")))


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store", max_bytes=2**30)


def forms(artifact: Artifact) -> list[Path]:
    return sorted(artifact.folder.glob("mapped-*"))


def answer(backend: OnnxRuntimeBackend | MappedOnnxRuntimeBackend, artifact: Artifact) -> bytes:
    session = backend.load(artifact.graph)
    (y,) = session.run(FEEDS, outputs=["y"])
    session.close()
    return y.tobytes()


@pytest.mark.parametrize("zeros", [False, True], ids=["plain", "compressed"])
def test_mapped_graph_gives_the_same_answers_to_the_bit(store: ArtifactStore, zeros: bool) -> None:
    artifact = commit_graph(store, zeros=zeros)
    assert (artifact.graph.suffix == ".gz") == zeros
    backend = MappedOnnxRuntimeBackend(store)

    first, second = answer(backend, artifact), answer(backend, artifact)

    assert first == second == answer(OnnxRuntimeBackend(), artifact)
    (form,) = forms(artifact)
    assert (form / "weights.bin").stat().st_size >= WIDTH * WIDTH * 4
    # The artifact itself is as sound as it was.
    assert store.open(artifact.key) == artifact
    assert [found.problem for found in store.verify()] == [None]


def test_weights_of_a_loaded_graph_are_mapped_from_the_form(store: ArtifactStore) -> None:
    artifact = commit_graph(store)
    MappedOnnxRuntimeBackend(store).load(artifact.graph).close()
    code = (
        "import sys, pathlib\n"
        "from serveprune.artifacts.store import ArtifactStore\n"
        "from serveprune.backends.mapped_graph import MappedOnnxRuntimeBackend\n"
        "backend = MappedOnnxRuntimeBackend(ArtifactStore(pathlib.Path(sys.argv[1]), max_bytes=2**30))\n"
        "session = backend.load(pathlib.Path(sys.argv[2]))\n"
        "print(pathlib.Path('/proc/self/maps').read_text())"
    )

    finished = subprocess.run(
        [sys.executable, "-c", code, str(store.root), str(artifact.graph)],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip

    assert "weights.bin" in finished.stdout


def test_form_is_written_once_when_many_load_at_the_same_time(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = commit_graph(store)
    written: list[str] = []
    attach = store.attach

    def attach_and_note(staging: Path, *, key: str, name: str) -> Path:
        written.append(name)
        return attach(staging, key=key, name=name)

    monkeypatch.setattr(store, "attach", attach_and_note)
    backend = MappedOnnxRuntimeBackend(store)
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.append(answer(backend, artifact))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(answers) == 4
    assert len(set(answers)) == 1
    assert len(forms(artifact)) == len(written) == 1
    assert not list((store.root / "tmp").iterdir())


@pytest.mark.parametrize("file", ["model.onnx", "weights.bin", "attachment.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_form_that_is_damaged_is_made_anew(
    store: ArtifactStore, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    artifact = commit_graph(store)
    backend = MappedOnnxRuntimeBackend(store)
    expected = answer(backend, artifact)
    (form,) = forms(artifact)
    before = {path.name: path.read_bytes() for path in form.iterdir()}
    content = before[file]
    if damage == "gone":
        (form / file).unlink()
    else:
        half = len(content) // 2
        (form / file).write_bytes(content[:half] + (b"" if damage == "cut" else b"!" + content[half + 1 :]))

    assert answer(backend, artifact) == expected
    assert {path.name: path.read_bytes() for path in form.iterdir()} == before


def test_form_that_names_no_files_is_not_trusted(store: ArtifactStore) -> None:
    artifact = commit_graph(store)
    backend = MappedOnnxRuntimeBackend(store)
    expected = answer(backend, artifact)
    (form,) = forms(artifact)
    (form / "weights.bin").write_bytes(bytes(WIDTH * WIDTH * 8))
    (form / "attachment.json").write_text(json.dumps({"files": {}, "problem": None}))

    assert answer(backend, artifact) == expected


def test_graph_is_loaded_as_ever_when_it_is_small(store: ArtifactStore) -> None:
    artifact = commit_graph(store, width=16)
    MappedOnnxRuntimeBackend(store).load(artifact.graph).close()
    assert forms(artifact) == []


def test_graph_is_loaded_as_ever_when_made_up_inputs_cannot_try_it(
    store: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    artifact = commit_graph(store, element=TensorProto.STRING)
    backend = MappedOnnxRuntimeBackend(store)
    for _ in range(2):
        session = backend.load(artifact.graph)
        assert session.run({**FEEDS, "text": np.array([b"a"] * 5, dtype=object)})[1].tolist() == [b"a"] * 5
    (form,) = forms(artifact)
    assert [path.name for path in form.iterdir()] == ["attachment.json"]


def test_graph_is_loaded_as_ever_when_the_disk_is_full(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    artifact = commit_graph(store)

    def full() -> None:
        raise ResourceExhausted("the disk is full")

    monkeypatch.setattr(store, "staging", full)
    logging.getLogger("serveprune").propagate = True
    assert answer(MappedOnnxRuntimeBackend(store), artifact) == answer(OnnxRuntimeBackend(), artifact)
    assert "loaded without shared weights: the disk is full" in caplog.text


def test_no_artifact_goes_for_a_form_when_the_store_is_at_its_bound(
    store: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    artifact, other = commit_graph(store), commit_graph(store, width=WIDTH // 2)
    tight = ArtifactStore(store.root, max_bytes=store.size_bytes() + 1000)
    logging.getLogger("serveprune").propagate = True
    assert answer(MappedOnnxRuntimeBackend(tight), artifact) == answer(OnnxRuntimeBackend(), artifact)
    assert "store.max_bytes" in caplog.text
    assert other.folder.exists()
    assert forms(artifact) == list((store.root / "tmp").iterdir()) == []


def test_form_is_tried_again_when_there_was_no_memory_for_it(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, backend = commit_graph(store), MappedOnnxRuntimeBackend(store)
    expected = answer(backend._plain, artifact)
    run = OnnxRuntimeSession.run

    def no_memory(session: OnnxRuntimeSession, feeds: object, *, outputs: object = ()) -> None:
        raise ResourceExhausted("no memory")

    monkeypatch.setattr(OnnxRuntimeSession, "run", no_memory)
    backend.load(artifact.graph).close()
    assert forms(artifact) == []
    monkeypatch.setattr(OnnxRuntimeSession, "run", run)
    assert answer(backend, artifact) == expected
    (form,) = forms(artifact)
    assert (form / "weights.bin").exists()


def test_form_is_counted_and_evicted_with_its_artifact(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store", max_bytes=2**30)
    artifact = commit_graph(store)
    before = store.size_bytes()
    MappedOnnxRuntimeBackend(store).load(artifact.graph).close()
    assert store.size_bytes() >= before + WIDTH * WIDTH * 4

    ArtifactStore(store.root, max_bytes=1).collect_garbage()

    assert not artifact.folder.exists()


def test_form_in_a_store_that_may_only_be_read_is_used(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = commit_graph(store)
    backend = MappedOnnxRuntimeBackend(store)
    expected = answer(backend, artifact)

    def refused(_: object) -> None:
        raise PermissionError("read-only")

    for writes in ("single_flight", "staging"):
        monkeypatch.setattr(store, writes, refused)
    monkeypatch.setattr(backend, "_plain", None)
    assert answer(backend, artifact) == expected
