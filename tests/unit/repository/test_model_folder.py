import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from serveprune.config.model import ExportedProgramSource, HuggingFaceSource, OnnxSource
from serveprune.errors import ConfigError, InvalidArgument, NotFound, ServePruneError
from serveprune.repository.model_folder import FolderContent, ModelFolder


def put(root: Path, *files: str, text: str = "content") -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "model.onnx").write_text("content")
    return tmp_path / "models"


def test_onnx_file_is_one_version(root: Path) -> None:
    put(root, "m/model.onnx", "m/model.onnx.data")
    entry = ModelFolder(root).read("m").entry
    assert entry.source == OnnxSource(onnx=root / "m" / "model.onnx")
    assert list(entry.served) == ["1"]


def test_exported_program_is_found_by_its_ending(root: Path) -> None:
    put(root, "m/network.pt2")
    assert ModelFolder(root).read("m").entry.source == ExportedProgramSource(pt2=root / "m" / "network.pt2")


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertModel", "feature-extraction"),
        ("BertForSequenceClassification", "sequence-classification"),
        ("ViTForImageClassification", "image-classification"),
    ],
)
def test_hugging_face_folder_says_what_it_is_for(root: Path, architecture: str, task: str) -> None:
    put(root, "m/config.json", text=json.dumps({"architectures": [architecture]}))
    source = ModelFolder(root).read("m").entry.source
    assert isinstance(source, HuggingFaceSource)
    assert (source.huggingface, source.task) == (root / "m", task)


def test_folders_are_versions_and_the_file_beside_them_says_the_rest(root: Path) -> None:
    put(root, "m/1/model.onnx", "m/2/model.onnx", "m/notes/readme.txt", "m/a.npz")
    put(
        root,
        "m/serveprune.yaml",
        text='{version_policy: all, tiers: [int8], evaluation: {file: a.npz}, versions: {"2": {max_batch_size: 3}}}',
    )
    served = ModelFolder(root).read("m").entry.served
    assert list(served) == ["1", "2"]
    assert [model.max_batch_size for model in served.values()] == [32, 3]
    assert served["2"].tiers == ("dense", "int8")
    assert served["1"].evaluation is not None
    assert served["1"].evaluation.file == root / "m" / "a.npz"


def test_file_may_say_more_of_a_hugging_face_folder(root: Path) -> None:
    put(root, "m/config.json", text="{}")
    text = "source: {huggingface: ., task: feature-extraction, pooling: mean}"
    put(root, "m/serveprune.yaml", text=text)
    source = ModelFolder(root).read("m").entry.source
    assert isinstance(source, HuggingFaceSource)
    assert source.pooling == "mean"


def link_out(root: Path) -> None:
    put(root, "m/serveprune.yaml", text="")
    (root / "m" / "model.onnx").symlink_to(root.parent / "outside" / "model.onnx")


def link_folder_out(root: Path) -> None:
    (root / "m").symlink_to(root.parent / "outside")


def link_version_out(root: Path) -> None:
    (root / "m").mkdir()
    (root / "m" / "1").symlink_to(root.parent / "outside")


def link_data_out(root: Path) -> None:
    put(root, "m/model.onnx")
    (root / "m" / "weights.data").symlink_to(root.parent / "outside" / "model.onnx")


def path_out(root: Path) -> None:
    put(root, "m/serveprune.yaml", text="source: {onnx: ../../outside/model.onnx}")


def torch_factory(root: Path) -> None:
    put(root, "m/serveprune.yaml", text="source: {torch: 'os:getcwd', inputs: [{name: x, shape: [batch, 4]}]}")


def torch_factory_of_a_version(root: Path) -> None:
    text = "versions: {'1': {source: {torch: 'os:getcwd', inputs: [{name: x, shape: [batch, 4]}]}}}"
    put(root, "m/serveprune.yaml", text=text)


def pipe(root: Path) -> None:
    put(root, "m/model.onnx")
    os.mkfifo(root / "m" / "serveprune.yaml")


def artifact(root: Path) -> None:
    put(root, "m/serveprune.yaml", text=f"source: {{artifact: {'a' * 64}}}")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "link out": (link_out, "model.onnx leads out of the model repository"),
    "link of the folder": (link_folder_out, "m leads out of the model repository"),
    "link of a version": (link_version_out, "1 leads out of the model repository"),
    "link of weights": (link_data_out, r"weights.data leads out of the model repository"),
    "path out": (path_out, "model.onnx leads out of the model repository"),
    "artifact": (artifact, "an artifact lies outside of its folder"),
    "torch factory": (torch_factory, "version 1: a torch factory runs code"),
    "torch factory of a version": (torch_factory_of_a_version, "version 1: a torch factory runs code"),
    "pickle": (lambda root: put(root, "m/weights.pkl"), "pickles are refused.*weights.pkl"),
    "torch pickle beside a graph": (
        lambda root: put(root, "m/model.onnx", "m/a/old.PT"),
        "pickles are refused.*old.PT",
    ),
    "pipe": (pipe, "expected files, got a pipe, socket or device: serveprune.yaml"),
    "nothing": (lambda root: put(root, "m/readme.txt"), "expected model.onnx, one .pt2 file"),
    "two programs": (lambda root: put(root, "m/a.pt2", "m/b.pt2"), "expected model.onnx, one .pt2 file"),
    "a model and versions": (lambda root: put(root, "m/model.onnx", "m/1/model.onnx"), "got both"),
    "unknown key": (
        lambda root: put(root, "m/model.onnx") or put(root, "m/serveprune.yaml", text="tires: [a]"),  # type: ignore[func-returns-value]
        r"serveprune.yaml:1: tires: unknown key; did you mean `tiers`\?",
    ),
    "no mapping": (
        lambda root: put(root, "m/model.onnx") or put(root, "m/serveprune.yaml", text="[a]"),  # type: ignore[func-returns-value]
        "expected a mapping",
    ),
    "the environment": (
        lambda root: put(root, "m/model.onnx") or put(root, "m/serveprune.yaml", text="version: ${HOME}"),  # type: ignore[func-returns-value]
        "expected the environment variable HOME to be set",
    ),
    "a policy without its version": (
        lambda root: put(root, "m/1/model.onnx") or put(root, "m/serveprune.yaml", text="version_policy: ['7']"),  # type: ignore[func-returns-value]
        r"version_policy\[0\]: expected one of the versions, got '7'; versions: 1",
    ),
}


@pytest.mark.parametrize(("write", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_folder_is_refused_and_the_error_says_why(root: Path, write: Callable[[Path], object], said: str) -> None:
    write(root)
    with pytest.raises((InvalidArgument, ConfigError), match=said):
        ModelFolder(root).read("m")


def test_link_within_the_repository_is_followed(root: Path) -> None:
    put(root, "shared/model.onnx")
    (root / "m").mkdir()
    (root / "m" / "model.onnx").symlink_to("../shared/model.onnx")
    assert ModelFolder(root).read("m").entry.source == OnnxSource(onnx=root / "m" / "model.onnx")


@pytest.mark.parametrize("name", ["..", ".", "", "../outside", "a/b", "/etc", ".hidden", "a@b", "m\n", "ü", "x" * 200])
def test_name_that_is_none_is_refused(root: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="expected the name of a model"):
        ModelFolder(root).read(name)


def test_folder_that_is_not_there_is_not_found(root: Path) -> None:
    with pytest.raises(NotFound, match="no folder 'nobody'"):
        ModelFolder(root).read("nobody")


def test_names_are_those_of_folders(root: Path) -> None:
    put(root, "b/model.onnx", "a/model.onnx", ".hidden/model.onnx", "file.onnx")
    assert ModelFolder(root).names() == ["a", "b"]
    with pytest.raises(ServePruneError, match="the model repository cannot be read"):
        ModelFolder(root / "none").names()


def test_content_of_a_version_changes_with_its_own_files_and_those_of_none(root: Path) -> None:
    put(root, "m/1/model.onnx", "m/2/model.onnx", "m/a.npz")
    folder = ModelFolder(root)

    def changed(*files: str) -> set[str]:
        before = folder.read("m").contents
        put(root, *files, text="other content")
        after = folder.read("m").contents
        return {version for version in after if after[version] != before.get(version)}

    assert changed() == set()
    assert changed("m/2/model.onnx") == {"2"}
    assert changed("m/3/model.onnx") == {"3"}
    assert changed("m/a.npz") == {"1", "2", "3"}
    put(root, "m/serveprune.yaml", text="max_batch_size: 3")
    assert changed() == set()


@pytest.mark.parametrize(
    ("names", "seen_before", "age_seconds", "whole"),
    [
        (["model.onnx"], "the same", 0.0, True),
        (["model.onnx"], "another", 100.0, False),
        (["model.onnx"], "nothing", 0.5, False),
        (["model.onnx"], "nothing", 3.0, True),
        (["model.onnx", ".model.onnx.Xa3f9Q"], "the same", 100.0, False),
        (["model.onnx", "1/weights.data.part"], "the same", 100.0, False),
        (["model.onnx.tmp"], "the same", 100.0, False),
        (["model.onnx", ".gitattributes"], "the same", 100.0, True),
        ([], "the same", 100.0, False),
    ],
)
def test_folder_is_whole_when_it_stays_the_same(
    names: list[str], seen_before: str, age_seconds: float, whole: bool
) -> None:
    content = FolderContent(dict.fromkeys(names, (1, 2, 3)), newest_change=1000.0)
    seen = {"the same": content.token, "another": "x", "nothing": None}[seen_before]
    assert content.is_whole(seen=seen, now=1000.0 + age_seconds, settle_seconds=2.0) == whole


def test_content_changes_with_size_time_and_number_of_a_file(root: Path) -> None:
    put(root, "m/model.onnx")
    folder, file = ModelFolder(root), root / "m" / "model.onnx"
    tokens = [folder.look("m").token]
    put(root, "m/model.onnx", text="longer content")
    tokens.append(folder.look("m").token)
    os.utime(file, ns=(1, 1))
    tokens.append(folder.look("m").token)
    assert len(set(tokens)) == 3
    assert folder.look("m").token == tokens[-1]
