import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from unit.artifacts.artifact_factory import digest

from serveprune.artifacts import key
from serveprune.artifacts.code_content import imported_files
from serveprune.artifacts.key import artifact_key, dense_key, source_recipe, tier_packages, tier_recipe
from serveprune.artifacts.manifest import FileRecord
from serveprune.config.model import ModelConfig, TextPreprocessing
from serveprune.config.profile import ProfileConfig
from serveprune.errors import FailedPrecondition, NotFound

DENSE = digest("dense")
INT8 = ProfileConfig.model_validate({"passes": [{"quantize": {}}]})


def _write(path: Path, content: bytes = b"content") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _model(source: dict[str, Any], **fields: Any) -> ModelConfig:
    return ModelConfig.model_validate({"source": source} | fields)


def _text_project(root: Path) -> ModelConfig:
    """A registered text model with everything a recipe can depend on."""
    for name in ("config.json", "model.safetensors", "tokenizer.json", "sub/special.bin"):
        _write(root / "minilm" / name, name.encode())
    _write(root / "calibration.jsonl", b'{"text": "a"}\n{"text": "b"}\n')
    _write(root / "evaluation.jsonl", b'{"image": "boot.png"}\nnot json "image"\n{"image": "gone.png"}\n{"image": 3}\n')
    _write(root / "boot.png", b"pixels")
    _write(root / "other-tokenizer.json")
    return _model(
        {"huggingface": root / "minilm", "task": "feature-extraction", "pooling": "mean"},
        preprocessing={"kind": "text", "tokenizer": root / "other-tokenizer.json", "max_length": 128},
        calibration={"file": root / "calibration.jsonl", "samples": 256},
        evaluation={"file": root / "evaluation.jsonl"},
    )


def _changed(model: ModelConfig, **fields: Any) -> ModelConfig:
    return ModelConfig.model_validate(model.model_dump() | fields)


def test_recipes_are_the_same_when_the_project_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = _text_project(tmp_path / "here")
    recipes = source_recipe(here), tier_recipe(DENSE, here, INT8, threads=1)
    shutil.move(tmp_path / "here", tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    there = _text_project(tmp_path / "there")
    assert (source_recipe(there), tier_recipe(DENSE, there, INT8, threads=1)) == recipes


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "sub/special.bin", "new.json"])
def test_source_recipe_changes_when_a_model_file_does(tmp_path: Path, name: str) -> None:
    model = _text_project(tmp_path)
    before = source_recipe(model)
    _write(tmp_path / "minilm" / name, b"changed")
    assert source_recipe(model) != before


@pytest.mark.parametrize("name", ["README.md", ".gitattributes", ".cache/huggingface/x", "__pycache__/m.pyc"])
def test_source_recipe_is_the_same_when_a_file_that_is_not_the_models_appears(tmp_path: Path, name: str) -> None:
    model = _text_project(tmp_path)
    before = source_recipe(model)
    _write(tmp_path / "minilm" / name)
    assert source_recipe(model) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda model: {"source": model.source.model_dump() | {"pooling": "cls"}},
        lambda model: {"source": model.source.model_dump() | {"normalize": True}},
        lambda model: {"preprocessing": model.preprocessing.model_dump() | {"max_length": 64}},
        lambda model: {"preprocessing": None},
    ],
)
def test_both_recipes_change_when_an_option_of_the_import_does(
    tmp_path: Path, change: Callable[[ModelConfig], dict[str, Any]]
) -> None:
    # A tier's recipe is made from the dense key that such a change leads to, or from the option itself.
    model = _text_project(tmp_path)
    assert source_recipe(_changed(model, **change(model))) != source_recipe(model)


def test_recipes_change_when_the_tokenizer_does(tmp_path: Path) -> None:
    model = _text_project(tmp_path)
    before = source_recipe(model), tier_recipe(DENSE, model, INT8, threads=1)
    _write(tmp_path / "other-tokenizer.json", b"changed")
    assert source_recipe(model) != before[0]
    assert tier_recipe(DENSE, model, INT8, threads=1) != before[1]


@pytest.mark.parametrize("name", ["calibration.jsonl", "evaluation.jsonl", "boot.png", "gone.png"])
def test_tier_recipe_alone_changes_when_a_sample_file_does(tmp_path: Path, name: str) -> None:
    model = _text_project(tmp_path)
    before = source_recipe(model), tier_recipe(DENSE, model, INT8, threads=1)
    _write(tmp_path / name, b'{"image": "boot.png"}')
    assert source_recipe(model) == before[0]
    assert tier_recipe(DENSE, model, INT8, threads=1) != before[1]


def test_tier_recipe_changes_when_samples_passes_or_dense_do(tmp_path: Path) -> None:
    model = _text_project(tmp_path)
    static = ProfileConfig.model_validate({"passes": [{"quantize": {"scheme": "static"}}]})
    twice = ProfileConfig.model_validate({"passes": [{"quantize": {}}, {"quantize": {}}]})
    fewer = _changed(model, calibration={"file": tmp_path / "calibration.jsonl", "samples": 8})
    recipes = {
        tier_recipe(DENSE, model, INT8, threads=1),
        tier_recipe(DENSE, model, INT8, threads=2),
        tier_recipe(DENSE, model, static, threads=1),
        tier_recipe(DENSE, model, twice, threads=1),
        tier_recipe(DENSE, fewer, INT8, threads=1),
        tier_recipe(DENSE, _changed(model, evaluation=None), INT8, threads=1),
        tier_recipe(digest("other dense"), model, INT8, threads=1),
    }
    assert len(recipes) == 7


def test_tier_recipe_changes_when_another_backend_is_asked_for(tmp_path: Path) -> None:
    model = _text_project(tmp_path)
    backends = ("onnxruntime", "openvino", "auto")
    recipes = [tier_recipe(DENSE, _changed(model, backend=name), INT8, threads=1) for name in backends]
    assert len(set(recipes)) == 3
    assert recipes[0] == tier_recipe(DENSE, model, INT8, threads=1)


def test_default_backend_is_no_part_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What was built before there was a choice must still be found.
    documents: list[Any] = []
    monkeypatch.setattr(key, "sha256_json", documents.append)
    tier_recipe(DENSE, _text_project(tmp_path), INT8, threads=1)
    assert "backend" not in documents[-1]


def test_optional_packages_count_where_a_tier_is_made_or_measured_with_them(tmp_path: Path) -> None:
    model = _text_project(tmp_path)
    nncf = ProfileConfig.model_validate(
        {"passes": [{"prune": {"target": {"speedup": 2}}}, {"quantize": {"scheme": "nncf"}}]}
    )
    assert tier_packages(model, INT8) == frozenset()
    assert tier_packages(model, nncf) == {"nncf"}
    assert tier_packages(_changed(model, backend="auto"), INT8) == {"openvino"}
    assert tier_packages(_changed(model, backend="openvino"), nncf) == {"openvino", "nncf"}


def test_tier_recipe_changes_when_a_pass_is_revised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _text_project(tmp_path)
    before = tier_recipe(DENSE, model, INT8, threads=1)
    monkeypatch.setattr(type(INT8.passes[0].options), "revision", 99)
    assert tier_recipe(DENSE, model, INT8, threads=1) != before


def test_tier_recipe_changes_when_the_task_or_the_way_of_measuring_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _text_project(tmp_path)
    recipe = tier_recipe(DENSE, model, INT8, threads=1)
    told = _changed(model, task="classification")
    assert tier_recipe(DENSE, told, INT8, threads=1) != recipe
    assert source_recipe(told) == source_recipe(model)
    monkeypatch.setattr(key, "MEASUREMENT_REVISION", key.MEASUREMENT_REVISION + 1)
    assert tier_recipe(DENSE, model, INT8, threads=1) != recipe


def test_recipes_are_the_same_when_gate_version_tiers_or_defaults_are_written_out(tmp_path: Path) -> None:
    model = _text_project(tmp_path)
    renamed = _changed(model, version="7", tiers=("dense", "int8"), max_batch_size=4)
    gated = ProfileConfig.model_validate(
        {"passes": [{"quantize": {"dtype": "int8", "scheme": "auto"}}], "gate": {"min_quality": 0.99}}
    )
    assert source_recipe(renamed) == source_recipe(model)
    assert tier_recipe(DENSE, renamed, gated, threads=1) == tier_recipe(DENSE, model, INT8, threads=1)


ENVIRONMENTS = st.dictionaries(st.sampled_from(["onnx", "torch", "cpu"]), st.sampled_from(["1", "2", "absent"]))


@given(st.tuples(st.sampled_from("abc"), ENVIRONMENTS), st.tuples(st.sampled_from("abc"), ENVIRONMENTS))
def test_artifact_key_differs_when_recipe_or_environment_does(
    one: tuple[str, dict[str, str]], other: tuple[str, dict[str, str]]
) -> None:
    assert (artifact_key(*one) == artifact_key(*other)) == (one == other)


def test_dense_key_is_of_content_and_of_what_the_source_declares() -> None:
    files = {name: FileRecord(sha256=digest(name), bytes=3) for name in ("model.onnx", "tokenizer.json")}
    declared = TextPreprocessing(tokenizer=Path("tokenizer.json"), max_length=128)
    keys = {
        dense_key(files),
        dense_key(files | {"model.onnx": FileRecord(sha256=digest("other"), bytes=3)}),
        dense_key(files, preprocessing=declared),
        dense_key(files, preprocessing=declared.model_copy(update={"max_length": 64})),
    }
    assert len(keys) == 4
    assert dense_key(dict(reversed(files.items()))) == dense_key(files)


def _external(folder: Path, name: str, *, location: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.arange(300, dtype=np.float32), name)
    _write(folder / location, tensor.raw_data)
    set_external_data(tensor, location=location, offset=0)
    tensor.ClearField("raw_data")
    return tensor


def _onnx_with_external_data(folder: Path) -> Path:
    """A graph whose weights, and the constant inside its branch, lie in two files of their own."""
    constant = helper.make_node("Constant", [], ["y"], value=_external(folder, "c", location="sub/c.bin"))
    branch = helper.make_graph([constant], "branch", [], [helper.make_empty_tensor_value_info("y")])
    graph = helper.make_graph(
        [
            helper.make_node("If", ["b"], ["z"], then_branch=branch, else_branch=branch),
            helper.make_node("Add", ["z", "w"], ["out"]),
        ],
        "g",
        [helper.make_tensor_value_info("b", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [300])],
        [_external(folder, "w", location="w.data")],
    )
    return _write(folder / "m.onnx", helper.make_model(graph).SerializeToString())


def test_source_recipe_changes_when_any_external_data_does(tmp_path: Path) -> None:
    path = _onnx_with_external_data(tmp_path / "m")
    model = _model({"onnx": path})
    recipes = [source_recipe(model)]
    data = [path.parent / "w.data", path.parent / "sub" / "c.bin"]
    for file in data:
        _write(file, file.read_bytes()[:-1] + b"!")
        recipes.append(source_recipe(model))
    _write(path.parent / "unrelated.bin")
    assert source_recipe(model) == recipes[-1]
    assert len(set(recipes)) == len(data) + 1


def test_source_recipe_changes_when_external_data_has_a_long_name(tmp_path: Path) -> None:
    path = _onnx_with_external_data(tmp_path / "m")
    model = onnx.load(path)
    name = "w" * 200 + ".data"  # its length takes two bytes in the file
    onnx.save(model, path, save_as_external_data=True, location=name, size_threshold=0)
    before = source_recipe(_model({"onnx": path}))
    _write(path.parent / name, b"changed")
    assert source_recipe(_model({"onnx": path})) != before


def test_source_recipe_reads_nothing_outside_the_folder_of_the_model(tmp_path: Path) -> None:
    path = _onnx_with_external_data(tmp_path / "m")
    secret = tmp_path / "secret"
    content = path.read_bytes()
    path.write_bytes(content + b"\x0a\x08location\x12\x09../secret")
    before = source_recipe(_model({"onnx": path}))
    _write(secret)
    assert source_recipe(_model({"onnx": path})) == before


def test_source_recipe_is_the_same_when_an_onnx_file_is_renamed_and_dated(tmp_path: Path) -> None:
    one, other = _write(tmp_path / "a" / "one.onnx", b"graph"), _write(tmp_path / "other.onnx", b"graph")
    os.utime(other, (0, 0))
    assert source_recipe(_model({"onnx": one})) == source_recipe(_model({"onnx": other}))


def test_source_recipe_differs_when_the_same_file_is_another_kind_of_source(tmp_path: Path) -> None:
    file = _write(tmp_path / "m", b"graph")
    assert source_recipe(_model({"onnx": file})) != source_recipe(_model({"pt2": file}))


def _torch_model(factory: str, **fields: Any) -> ModelConfig:
    return _model({"torch": factory, "inputs": [{"name": "x", "shape": ["batch", 4]}]} | fields)


def test_source_recipe_follows_a_factorys_code_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = b"raise SystemExit('this module was imported')\n"
    for name in ("zoo_a/__init__.py", "zoo_a/nets/__init__.py", "zoo_a/nets/small.py", "zoo_a/nets/layers.py"):
        _write(tmp_path / name, bomb)
    _write(tmp_path / "zoo_b.py", bomb)
    monkeypatch.chdir(tmp_path)
    weights = _write(tmp_path / "w.safetensors")
    packaged = _torch_model("zoo_a.nets.small:make", weights=weights)
    single = _torch_model("zoo_b:make")
    recipes = [source_recipe(packaged)]
    for name in ("zoo_a/nets/small.py", "zoo_a/nets/layers.py", "w.safetensors"):
        _write(tmp_path / name, bomb * 2)
        recipes.append(source_recipe(packaged))
    assert len(set(recipes)) == 4
    before = source_recipe(single)
    _write(tmp_path / "zoo_a" / "nets" / "small.py", b"pass")
    assert source_recipe(single) == before
    _write(tmp_path / "zoo_b.py", b"pass")
    assert source_recipe(single) != before
    assert not {"zoo_a", "zoo_b"} & set(sys.modules)


def test_source_recipe_follows_what_a_factorys_module_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(
        tmp_path / "zoo_d.py",
        b"import torch, json\nfrom zoo_layers.blocks import make\ndef build():\n    import zoo_late\n",
    )
    _write(tmp_path / "zoo_layers" / "__init__.py")
    _write(tmp_path / "zoo_layers" / "blocks.py", b"from . import norms\nfrom .deep.er import x\nimport zoo_d\n")
    _write(tmp_path / "zoo_layers" / "norms.py")
    _write(tmp_path / "zoo_layers" / "deep" / "er.py", b"from ..activations import relu\n")
    _write(tmp_path / "zoo_layers" / "activations.py", b"raise SystemExit('this module was imported')\n")
    _write(tmp_path / "zoo_layers" / "unused.py")
    _write(tmp_path / "zoo_late.py", b"not python at all (")
    monkeypatch.chdir(tmp_path)
    model = _torch_model("zoo_d:build")
    recipes = [source_recipe(model)]
    for name in ("__init__", "blocks", "norms", "deep/er", "activations", "../zoo_late", "../zoo_d"):
        file = tmp_path / "zoo_layers" / f"{name}.py"
        file.write_bytes(file.read_bytes() + b"\n# changed")
        recipes.append(source_recipe(model))
    assert len(set(recipes)) == 8
    _write(tmp_path / "zoo_layers" / "unused.py", b"changed")
    assert source_recipe(model) == recipes[-1]
    # The standard library and what is installed are named by their versions.
    assert set(imported_files("zoo_d")) == {
        "zoo_d",
        "zoo_late",
        *(f"zoo_layers{name}" for name in ("", ".blocks", ".norms", ".deep.er", ".activations")),
    }


def test_packages_of_another_environment_that_is_seen_count_as_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "other" / "lib" / "site-packages" / "zoo_package" / "__init__.py", b"import zoo_further")
    _write(tmp_path / "project" / "zoo_e.py", b"import zoo_package")
    monkeypatch.syspath_prepend(tmp_path / "other" / "lib" / "site-packages")
    monkeypatch.chdir(tmp_path / "project")

    assert set(imported_files("zoo_e")) == {"zoo_e"}


def test_source_recipe_is_the_same_when_a_factorys_project_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = set()
    for name in ("here", "there"):
        _write(tmp_path / name / "zoo_c.py", b"code")
        monkeypatch.chdir(tmp_path / name)
        recipes.add(source_recipe(_torch_model("zoo_c:make")))
    assert len(recipes) == 1


@pytest.mark.parametrize("module", ["no_such_module_at_all", "json.no_such_part", "json.decoder.deeper"])
def test_source_recipe_raises_when_a_factorys_module_is_missing(module: str) -> None:
    with pytest.raises(NotFound, match=f"module {module}"):
        source_recipe(_torch_model(f"{module}:make"))


def test_source_recipe_finds_installed_modules() -> None:
    assert source_recipe(_torch_model("json.decoder:make")) != source_recipe(_torch_model("json:make"))


@pytest.mark.parametrize(
    "source",
    [{"onnx": "absent.onnx"}, {"pt2": "absent.pt2"}, {"huggingface": "absent", "task": "image-classification"}],
)
def test_source_recipe_raises_when_a_file_is_missing(tmp_path: Path, source: dict[str, str]) -> None:
    with pytest.raises(NotFound, match="expected absent"):
        source_recipe(_model(source))


def test_recipes_raise_when_a_folder_is_where_a_file_should_be(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"source\.onnx: .* cannot be read"):
        source_recipe(_model({"onnx": tmp_path}))
    model = _model({"onnx": _write(tmp_path / "m.onnx")}, calibration={"file": tmp_path / "set.npz"})
    (tmp_path / "set.npz").mkdir()
    with pytest.raises(FailedPrecondition, match=r"calibration\.file: .* cannot be read"):
        tier_recipe(DENSE, model, INT8, threads=1)


def test_source_recipe_accepts_an_empty_onnx_file(tmp_path: Path) -> None:
    # Importing says what is wrong with it; the key only has to exist.
    assert len(source_recipe(_model({"onnx": _write(tmp_path / "m.onnx", b"")}))) == 64
