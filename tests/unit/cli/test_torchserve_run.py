import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serveprune.cli.torchserve import torchserve_app
from serveprune.errors import FailedPrecondition, InvalidArgument, NotFound

PORTS = ("inference", "management", "metrics", "grpc", "grpc-management")


def _error(*options: str) -> BaseException | None:
    return CliRunner().invoke(torchserve_app, ["run", *options]).exception


def test_store_without_archives_is_told(tmp_path: Path) -> None:
    error = _error("--model-store", str(tmp_path / "none"))
    assert isinstance(error, NotFound)
    assert "expected archives (NAME.mar), got none" in error.message


def test_archives_are_listed_when_one_is_missing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.mar").touch()
    error = _error("--model-store", str(tmp_path), "--model", "a", "--model", "c")
    assert isinstance(error, NotFound)
    assert error.message == "--model: expected some of a, b, got 'c'"


def test_file_that_is_no_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.mar").write_bytes(b"no archive")
    error = _error("--model-store", str(tmp_path))
    assert isinstance(error, FailedPrecondition)
    assert error.message.startswith(f"{tmp_path / 'a.mar'}: expected an archive")


def test_address_that_is_none_is_told_with_its_option(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.mar", "w"):
        pass
    error = _error("--model-store", str(tmp_path), "--grpc-management", "nowhere")
    assert isinstance(error, InvalidArgument)
    assert error.message.startswith("--grpc-management: expected")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--max-response-bytes", "much"], "--max-response-bytes: expected a size above 0"),
        (["--max-request-bytes", "2GiB"], "--max-request-bytes: expected less than 2GiB, got 2GiB"),
        (["--metrics-page", "9100"], "--metrics-page: expected"),
        (["--property", "job_queue_size"], "--property: expected NAME=VALUE, and each name once"),
        (["--property", "a=1", "--property", "a=2"], "--property: expected NAME=VALUE, and each name once"),
    ],
)
def test_option_that_is_wrong_is_told(tmp_path: Path, options: list[str], expected: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.mar", "w"):
        pass
    metrics = tmp_path / "metrics.yaml"
    metrics.touch()
    ports = [word for name in PORTS for word in (f"--{name}", "127.0.0.1:0")]
    error = _error("--model-store", str(tmp_path), "--metrics-config", str(metrics), *ports, *options)
    assert isinstance(error, InvalidArgument)
    assert error.message.startswith(expected)


def test_folder_that_others_may_read_is_refused_for_tokens(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.mar", "w"):
        pass
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    error = _error("--model-store", str(tmp_path), "--folder", str(folder))
    assert isinstance(error, FailedPrecondition)
    assert error.message.startswith(f"--folder {folder}: expected a folder that is closed to all but its owner")
    assert "got mode 755" in error.message
