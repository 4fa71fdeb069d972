import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Raises:
        OSError: The file is missing or cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON: sorted keys, no spaces, UTF-8.

    Raises:
        TypeError: The value holds something JSON has no form for.
        ValueError: The value holds NaN or an infinity, for which JSON has no form either.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # A file name that is not UTF-8 reaches Python with surrogates; they still have to give one digest.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_folder(path: Path, *, ignored: Sequence[str] = ()) -> str:
    """Return the SHA-256 over the names (relative to ``path``) and contents of all files below a folder.

    Files and folders whose name begins with a dot do not count, nor those whose name matches one of the
    shell-style patterns in ``ignored``. Links to files count as the files they point to.

    Raises:
        OSError: The folder or one of its files is missing or cannot be read.
    """
    return sha256_json({path_in(path, file): sha256_file(file) for file in _files_below(path, ignored)})


def path_in(folder: Path, file: Path) -> str:
    """Return a file's path relative to a folder, with forward slashes."""
    return file.relative_to(folder).as_posix()


def _files_below(folder: Path, ignored: Sequence[str]) -> Iterator[Path]:
    def counts(name: str) -> bool:
        return not name.startswith(".") and not any(fnmatch(name, pattern) for pattern in ignored)

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if counts(name)]
        yield from (Path(parent, name) for name in files if counts(name))
