import hashlib
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serveprune.artifacts.digest import sha256_file, sha256_folder, sha256_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_sha256_file_agrees_with_coreutils(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 5000)
    told = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert sha256_file(path) == told


def test_sha256_json_is_of_canonical_text() -> None:
    expected = hashlib.sha256('{"a":[1,2.5,null],"é":true}'.encode()).hexdigest()
    assert sha256_json({"é": True, "a": [1, 2.5, None]}) == expected


@given(st.dictionaries(st.text(), JSON, min_size=2, max_size=4))
def test_sha256_json_is_the_same_when_keys_are_reordered(value: dict[str, object]) -> None:
    assert sha256_json(dict(reversed(value.items()))) == sha256_json(value)


def test_sha256_json_raises_when_json_has_no_form() -> None:
    with pytest.raises(TypeError):
        sha256_json({"path": Path("x")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        sha256_json(float("nan"))


FILES = st.dictionaries(
    st.sampled_from(["a", "b", "sub/a", "sub/deeper/c", "z.bin"]), st.binary(max_size=9), min_size=1
)


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@settings(max_examples=30)
@given(FILES)
def test_sha256_folder_is_the_same_when_the_folder_moves(files: dict[str, bytes]) -> None:
    with TemporaryDirectory() as here, TemporaryDirectory() as there:
        assert sha256_folder(_write(Path(here), files)) == sha256_folder(_write(Path(there), files))


@settings(max_examples=30)
@given(FILES, FILES)
def test_sha256_folder_differs_when_contents_do(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    with TemporaryDirectory() as here, TemporaryDirectory() as there:
        same = sha256_folder(_write(Path(here), one)) == sha256_folder(_write(Path(there), other))
    assert same == (one == other)


def test_sha256_folder_skips_dot_files_and_ignored_names(tmp_path: Path) -> None:
    _write(tmp_path, {"config.json": b"{}"})
    plain = sha256_folder(tmp_path, ignored=("*.md",))
    _write(tmp_path, {".git/HEAD": b"x", ".cache": b"y", "sub/.hidden": b"z", "README.md": b"text"})
    assert sha256_folder(tmp_path, ignored=("*.md",)) == plain
    assert sha256_folder(tmp_path) != plain


def test_sha256_folder_follows_links_to_files(tmp_path: Path) -> None:
    # A model hub's cache is a folder of links to blobs.
    real, linked = tmp_path / "real", tmp_path / "linked"
    _write(real, {"weights": b"123"})
    linked.mkdir()
    (linked / "weights").symlink_to(real / "weights")
    assert sha256_folder(linked) == sha256_folder(real)


def test_sha256_folder_raises_when_the_folder_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sha256_folder(tmp_path / "absent")
