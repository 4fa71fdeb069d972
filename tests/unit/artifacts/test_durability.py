import errno
from pathlib import Path

import pytest

from serveprune.artifacts.durability import full_disk_reported, size_on_disk_bytes, sync_tree, write_file
from serveprune.errors import ResourceExhausted


def test_full_disk_reported_says_what_was_needed_when_the_device_is_full(tmp_path: Path) -> None:
    write_file(tmp_path / "half", b"x" * 1234)

    def write() -> None:
        with full_disk_reported(tmp_path, folder=tmp_path, doing="storing"), Path("/dev/full").open("wb") as full:
            full.write(b"x" * 100_000)

    with pytest.raises(ResourceExhausted, match=r"storing: expected room for more than 1234 bytes in .*'No space"):
        write()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_reported_translates_every_way_to_be_full(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(ResourceExhausted) as raised,
        full_disk_reported(tmp_path / "not" / "there", folder=tmp_path, doing="storing"),
    ):
        raise OSError(number, "told by the system")
    assert isinstance(raised.value.__cause__, OSError)


def test_full_disk_reported_lets_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), full_disk_reported(tmp_path, folder=tmp_path, doing="storing"):
        raise PermissionError(errno.EACCES, "not yours")


def test_size_on_disk_counts_all_files_below(tmp_path: Path) -> None:
    for name, size in (("a", 3), ("sub/b", 5)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_file(tmp_path / name, b"x" * size)
    (tmp_path / "dangling").symlink_to("nowhere")
    sizes = size_on_disk_bytes(tmp_path / "a"), size_on_disk_bytes(tmp_path / "sub"), size_on_disk_bytes(tmp_path / "c")
    assert sizes == (3, 5, 0)


def test_sync_tree_raises_when_a_folder_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sync_tree(tmp_path / "absent")
