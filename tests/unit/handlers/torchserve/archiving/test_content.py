import json
import shutil
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from serveprune.artifacts.builder import BuildRequest
from serveprune.artifacts.key import source_recipe, tier_recipe
from serveprune.building import builder_of
from serveprune.config.loading import load_config_content
from serveprune.config.root import ServePruneConfig
from serveprune.errors import FailedPrecondition
from serveprune.handlers.torchserve.archiving.content import lay_out, of_the_store
from serveprune.handlers.torchserve.settings import config_of, settings_of

PROFILES = {
    "int8": {"passes": [{"quantize": {"scheme": "dynamic"}}], "gate": {"min_quality": 0.97}},
    "unused": {"passes": [{"prune": {"target": {"ratio": 0.5}}}]},
}


def _config(folder: Path, **document: Any) -> ServePruneConfig:
    text = json.dumps({"profiles": PROFILES, **document}).encode()
    return load_config_content(text, name="serveprune.yaml", folder=folder, environment={"NAME": "value"})


def _laid_out(config: ServePruneConfig, folder: Path) -> tuple[dict[str, Any], ServePruneConfig]:
    """Lay out the only model, through a file as TorchServe would read it."""
    folder.mkdir()
    section = lay_out(config, config.model("m"), name="m", folder=folder)
    (folder.parent / "settings.yaml").write_text(json.dumps({"handler": {"serveprune": section}}))
    said = settings_of(folder.parent, config_file="settings.yaml")
    return section, config_of(said, model="m", version=config.model("m").version, folder=folder)


def _expect_same_recipes(ours: ServePruneConfig, theirs: ServePruneConfig) -> None:
    model, packed = ours.model("m"), theirs.model("m")
    assert source_recipe(packed) == source_recipe(model)
    assert packed.tiers == model.tiers
    for tier in model.tiers[1:]:
        assert _recipe(theirs, tier) == _recipe(ours, tier)


def _recipe(config: ServePruneConfig, tier: str) -> tuple[str, object]:
    profile = config.profile(tier)
    assert profile is not None
    threads = config.server.threads_per_executor
    return tier_recipe("dense", config.model("m"), profile, threads=threads), profile.gate


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """An ONNX file with its weights in a file beside it, in a folder with more."""
    folder = tmp_path / "given"
    folder.mkdir()
    weights = numpy_helper.from_array(np.ones((4, 300), np.float32), "w")
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in (("x", 4), ("y", 300))
    )
    made = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "m", [x], [y], initializer=[weights])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="m.weights", size_threshold=0)
    (folder / "unrelated.bin").write_bytes(b"not of the model")
    return folder / "m.onnx"


def test_onnx_file_is_packed_with_its_external_data_and_nothing_else(graph: Path, tmp_path: Path) -> None:
    config = _config(tmp_path, models={"m": {"source": {"onnx": str(graph)}, "tiers": ["int8"]}})
    section, packed = _laid_out(config, tmp_path / "archive")

    assert section["source"] == {"onnx": "model-files/source/m.onnx"}
    assert {path.name for path in (tmp_path / "archive").rglob("*") if path.is_file()} == {"m.onnx", "m.weights"}
    _expect_same_recipes(config, packed)


def test_model_of_the_store_is_packed_without_its_files(graph: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", x=np.ones((4, 4), np.float32))
    model = {"source": {"onnx": str(graph)}, "tiers": ["int8"], "evaluation": {"file": "samples.npz"}}
    config = _config(tmp_path, store={"path": "artifacts"}, models={"m": model})
    with pytest.raises(
        FailedPrecondition, match=r"--by-reference: expected model m in the store .*artifacts, got nothing"
    ):
        of_the_store(config, config.model("m"), name="m")

    builder = builder_of(config)
    request = BuildRequest(model_name="m", model=config.model("m"))
    dense = builder.build(request, on_progress=lambda progress: None, cancelled=Event()).key
    referring = of_the_store(config, config.model("m"), name="m")
    (tmp_path / "archive").mkdir()
    section = lay_out(config, referring, name="m", folder=tmp_path / "archive")
    packed = config_of(section, model="m", version="1", folder=tmp_path / "archive")

    assert section["source"] == {"artifact": dense}
    assert [path.name for path in (tmp_path / "archive").rglob("*") if path.is_file()] == ["samples.npz"]
    # Tiers are found by the same recipe, whether the graph is named by file or by key.
    assert _recipe(packed, "int8") == _recipe(config, "int8")


def test_settings_beside_the_model_are_carried_when_they_count(graph: Path, tmp_path: Path) -> None:
    config = _config(
        tmp_path,
        store={"path": "artifacts", "max_bytes": "1GiB"},
        server={"http": "127.0.0.1:1", "threads_per_executor": 2},
        builds={"niceness": 3},
        models={"m": {"source": {"onnx": str(graph)}, "tiers": ["int8"]}},
        deployments={"m": {"default_tier": "int8"}},
    )
    section, packed = _laid_out(config, tmp_path / "archive")

    assert section["store"] == {"path": str(tmp_path / "artifacts"), "max_bytes": 2**30}
    assert section["server"] == {"threads_per_executor": 2}
    assert list(section["profiles"]) == ["int8"]
    assert packed.builds == config.builds
    # Where copies of a shared store would lie counts for a shared one only.
    assert packed.store.model_dump(exclude={"cache_path"}) == config.store.model_dump(exclude={"cache_path"})
    assert packed.deployment("m") == config.deployment("m")
    _expect_same_recipes(config, packed)


def test_adaptive_deployment_and_canary_are_the_same_when_packed(graph: Path, tmp_path: Path) -> None:
    for number, deployment in enumerate(
        (
            {"policy": "adaptive", "target_latency_ms": 5, "min_quality": 0.9},
            {"split": {"dense": 3, "int8": 1}},
            {"canary": {"tier": "int8", "steps": [{"setWeight": 10}, {"pause": "90s"}, {"pause": {}}]}},
        )
    ):
        config = _config(
            tmp_path,
            models={"m": {"source": {"onnx": str(graph)}, "tiers": ["int8"]}},
            deployments={"m": deployment},
        )
        _, packed = _laid_out(config, tmp_path / f"archive{number}")
        assert packed.deployment("m") == config.deployment("m")


def test_data_sets_and_tokenizer_are_packed(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / ".hidden").write_text("not of the model")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "calibration.jsonl").write_text('{"text": "one"}\n')
    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(b"png")
    (folder / "evaluation.jsonl").write_text('{"image": "images/a.png"}\n{"image": "missing.png"}\n')
    config = _config(
        folder,
        models={
            "m": {
                "source": {"huggingface": "model", "task": "feature-extraction", "pooling": "mean"},
                "preprocessing": {"kind": "text", "tokenizer": "tokenizer.json", "max_length": 16},
                "calibration": {"file": "calibration.jsonl", "samples": 1},
                "evaluation": {"file": "evaluation.jsonl"},
                "tiers": ["int8"],
            }
        },
    )
    section, packed = _laid_out(config, tmp_path / "archive")

    assert section["source"] == {"huggingface": "model-files/source", "task": "feature-extraction", "pooling": "mean"}
    assert section["calibration"] == {"file": "model-files/calibration/calibration.jsonl", "samples": 1}
    assert not (tmp_path / "archive" / "model-files" / "source" / ".hidden").exists()
    assert (tmp_path / "archive" / "model-files" / "evaluation" / "images" / "a.png").read_bytes() == b"png"
    _expect_same_recipes(config, packed)


def test_factory_is_packed_with_all_it_imports_and_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    (project / "nets" / "parts").mkdir(parents=True)
    (project / "nets" / "__init__.py").touch()
    (project / "nets" / "parts" / "__init__.py").touch()
    (project / "nets" / "parts" / "block.py").write_text("import json\n")
    (project / "nets" / "sizes.txt").write_text("read at run time")
    (project / "shared.py").write_text("width = 4\n")
    (project / "nets" / "classifier.py").write_text("import shared\nfrom nets.parts import block\n\ndef make(): ...\n")
    (project / "elsewhere.py").write_text("not imported\n")
    (project / "weights.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(project)
    config = _config(
        project,
        models={
            "m": {
                "source": {
                    "torch": "nets.classifier:make",
                    "weights": "weights.safetensors",
                    "inputs": [{"name": "x", "shape": ["batch", 4]}],
                }
            }
        },
    )
    section, packed = _laid_out(config, tmp_path / "archive")

    assert section["source"]["weights"] == "model-files/source/weights.safetensors"
    found = {str(path.relative_to(tmp_path / "archive")) for path in (tmp_path / "archive").rglob("*.*")}
    assert found == {
        "nets/__init__.py",
        "nets/classifier.py",
        "nets/parts/__init__.py",
        "nets/parts/block.py",
        "nets/sizes.txt",
        "shared.py",
        "model-files/source/weights.safetensors",
    }
    ours = source_recipe(config.model("m"))
    monkeypatch.chdir(tmp_path / "archive")
    assert source_recipe(packed.model("m")) == ours


def test_code_of_an_installed_package_is_left_where_it_is(tmp_path: Path) -> None:
    config = _config(
        tmp_path,
        models={
            "m": {"source": {"torch": "json.decoder:JSONDecoder", "inputs": [{"name": "x", "shape": ["batch", 4]}]}}
        },
    )
    _laid_out(config, tmp_path / "archive")
    assert list((tmp_path / "archive").rglob("*")) == []


def test_exported_program_is_packed(tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(b"program")
    config = _config(tmp_path, models={"m": {"source": {"pt2": "m.pt2"}, "version": "7"}})
    section, packed = _laid_out(config, tmp_path / "archive")
    assert section["source"] == {"pt2": "model-files/source/m.pt2"}
    assert "version" not in section
    assert packed.model("m").version == "7"


def test_checkpoint_of_a_pass_is_packed(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "start.safetensors").write_bytes(b"weights")
    (tmp_path / "labelled.npz").write_bytes(b"samples")
    config = _config(
        tmp_path,
        profiles={"ticket": {"passes": [{"lottery": {"rewind": {"checkpoint": "start.safetensors"}}}]}},
        models={
            "m": {"source": {"onnx": str(graph)}, "tiers": ["ticket"], "calibration": {"file": "labelled.npz"}},
        },
    )
    section, packed = _laid_out(config, tmp_path / "archive")
    place = "model-files/profiles/ticket/0/start.safetensors"
    assert section["profiles"]["ticket"]["passes"][0]["lottery"]["rewind"]["checkpoint"] == place
    _expect_same_recipes(config, packed)


def test_text_that_looks_like_a_variable_stays_what_it_is(graph: Path, tmp_path: Path) -> None:
    folder = tmp_path / "${NAME}"
    config = _config(
        tmp_path, store={"path": str(folder).replace("$", "$$")}, models={"m": {"source": {"onnx": str(graph)}}}
    )
    _, packed = _laid_out(config, tmp_path / "archive")
    assert packed.store.path == folder


def test_change_while_copying_is_refused(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(tmp_path, models={"m": {"source": {"onnx": str(graph)}}})
    (tmp_path / "archive").mkdir()

    def copy(_: Path, target: Path) -> None:
        target.write_bytes(b"half of it")

    monkeypatch.setattr(shutil, "copyfile", copy)
    with pytest.raises(FailedPrecondition, match="model m: its files changed while they were copied"):
        lay_out(config, config.model("m"), name="m", folder=tmp_path / "archive")
