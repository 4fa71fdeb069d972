"""Paths of the config file: made absolute against its folder, and looked up while it is loaded.

Both happen only when validation is given a `Locations` as its context. A manifest, or a request to a build's
child process, holds the same models, and there the paths stay as they are.
"""

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

from serveprune.config.problem import description


@dataclass(frozen=True, slots=True)
class Locations:
    """The folder that relative paths are relative to."""

    folder: Path

    def absolute(self, path: Path) -> Path:
        """Return the path seen from the folder; a leading `~` is the home folder.

        Raises:
            ValueError: There is no such home folder.
        """
        try:
            return self.folder / path.expanduser()
        except RuntimeError as error:
            raise ValueError(f"expected a path, got {str(path)!r}: {error}") from error


def _mode(path: Path) -> int | None:
    """Return the file's mode bits, or ``None`` where nothing is."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:  # a zero byte or a lone surrogate, which no file name holds
        raise ValueError(f"expected a path, got {str(path)!r}, which cannot be a file name") from None
    except OSError as error:
        raise ValueError(f"expected a readable path, got {path}: {error.strerror}") from error


def _existing_file(path: Path, info: ValidationInfo) -> Path:
    if not isinstance(info.context, Locations):
        return path
    absolute = info.context.absolute(path)
    mode = _mode(absolute)
    if mode is None:
        raise ValueError(f"expected a file, but {absolute} does not exist")
    if not stat.S_ISREG(mode):
        raise ValueError(f"expected a file, got {'a folder' if stat.S_ISDIR(mode) else 'something else'}: {absolute}")
    return absolute


def _dataset_file(path: Path, info: ValidationInfo) -> Path:
    if path.suffix not in (".npz", ".jsonl"):
        raise ValueError(f"expected a .npz or .jsonl file, got {path.name!r}")
    return _existing_file(path, info)


def _hugging_face_folder(path: Path, info: ValidationInfo) -> Path:
    if not isinstance(info.context, Locations):
        return path
    absolute = info.context.absolute(path)
    mode = _mode(absolute)
    if mode is None:
        raise ValueError(f"expected a folder, but {absolute} does not exist (nothing is downloaded from a hub)")
    if not stat.S_ISDIR(mode):
        raise ValueError(f"expected a folder, got a file: {absolute}")
    if _mode(absolute / "config.json") is None:
        raise ValueError(f"expected a folder as `save_pretrained` leaves it, but {absolute} has no config.json")
    return absolute


def _folder_to_be(path: Path, info: ValidationInfo) -> Path:
    if not isinstance(info.context, Locations):
        return path
    absolute = info.context.absolute(path)
    mode = _mode(absolute)
    if mode is not None and not stat.S_ISDIR(mode):
        raise ValueError(f"expected a folder or a free name, got a file: {absolute}")
    return absolute


ExistingFile = Annotated[Path, AfterValidator(_existing_file)]
DatasetFile = Annotated[Path, AfterValidator(_dataset_file)]
HuggingFaceFolder = Annotated[Path, AfterValidator(_hugging_face_folder)]
FolderToBe = Annotated[Path, AfterValidator(_folder_to_be)]
"""A folder that is made when it is not there."""


_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S*[^\s/]\S*")


def _folder_or_url(value: Any, info: ValidationInfo) -> Path | str:
    if isinstance(value, str) and "://" in value:
        if not _URL.fullmatch(value) or "@" in value:
            # One with a password in it is not repeated.
            shown = "one with credentials in it" if "@" in value else repr(value)
            raise ValueError(f"expected a folder, or a URL such as s3://bucket/prefix without credentials, got {shown}")
        return value.rstrip("/")
    if not isinstance(value, str | Path):
        raise ValueError(f"expected a path or a URL such as s3://bucket/prefix, got {description(value)}")
    return _folder_to_be(Path(value), info)


FolderOrUrl = Annotated[
    Path | str,
    PlainValidator(_folder_or_url),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "format": "path", "examples": [".serveprune", "s3://bucket/prefix"]}),
]
"""A folder that is made when it is not there, or the URL of a store that machines share."""
