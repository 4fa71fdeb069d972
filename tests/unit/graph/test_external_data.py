from pathlib import Path

import pytest
from unit.graph.graph_files import linear_model, save_with_external_data

from serveprune.errors import InvalidArgument
from serveprune.graph.external_data import check_external_data, external_files
from serveprune.graph.onnx_file import read_header


def _check(path: Path) -> None:
    check_external_data(read_header(path), folder=path.parent, label=path.name)


def test_external_data_is_accepted_when_it_lies_beside_the_model(tmp_path: Path) -> None:
    path = save_with_external_data(linear_model(), tmp_path / "m.onnx", location="sub/weights.bin")
    _check(path)
    assert external_files(read_header(path)) == {"sub/weights.bin"}


@pytest.mark.parametrize("location", ["../w.bin", "sub/../../w.bin", "/etc/hostname", "", "..\\w.bin"])
def test_external_data_is_refused_when_its_location_leaves_the_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "model").mkdir()
    path = save_with_external_data(
        linear_model(), tmp_path / "model" / "m.onnx", location=location, data=tmp_path / "w.bin"
    )
    with pytest.raises(InvalidArgument, match=r"m\.onnx: external data of 'w': expected a file name inside"):
        _check(path)


def test_external_data_is_refused_when_a_link_leaves_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").symlink_to(tmp_path / "secret.bin")
    path = save_with_external_data(linear_model(), folder / "m.onnx", location="w.bin", data=tmp_path / "secret.bin")
    with pytest.raises(InvalidArgument, match="link that leaves"):
        _check(path)


def test_external_data_is_refused_when_a_linked_folder_leaves_the_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "sub").symlink_to(outside)
    path = save_with_external_data(linear_model(), folder / "m.onnx", location="sub/w.bin", data=outside / "w.bin")
    with pytest.raises(InvalidArgument, match="link that leaves"):
        _check(path)


def test_external_data_is_refused_when_it_is_truncated(tmp_path: Path) -> None:
    path = save_with_external_data(linear_model(), tmp_path / "m.onnx", location="w.bin")
    (tmp_path / "w.bin").write_bytes(b"\0" * 10)
    with pytest.raises(InvalidArgument, match="expected 48 bytes at offset 0, but the file has 10"):
        _check(path)


def test_external_data_is_refused_when_it_is_missing(tmp_path: Path) -> None:
    path = save_with_external_data(linear_model(), tmp_path / "m.onnx", location="w.bin")
    (tmp_path / "w.bin").unlink()
    with pytest.raises(InvalidArgument, match="missing"):
        _check(path)
