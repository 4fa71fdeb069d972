"""What a configured source, preprocessing or data set contains, as JSON without any path in it.

Artifact keys are made of this, so it must change when the content does and must not when files move.
"""

import json
import mmap
import re
from pathlib import Path
from typing import Any

from serveprune.artifacts.code_content import imported_files, module_file
from serveprune.artifacts.digest import sha256_file, sha256_folder
from serveprune.config.model import (
    ArtifactSource,
    DatasetConfig,
    ExportedProgramSource,
    HuggingFaceSource,
    OnnxSource,
    Preprocessing,
    Source,
    TextPreprocessing,
    TorchSource,
)
from serveprune.errors import FailedPrecondition, NotFound

# What people and tools leave beside a model without changing it.
_NOT_OF_THE_MODEL = ("*.md", "*.lock", "__pycache__")

# An external tensor's file is a protobuf map entry: field 1 (0x0a), 8 bytes, "location"; field 2 (0x12), then
# the length of the name and the name. The onnx package is not to be had in this half, and searching for the
# entry finds it wherever it stands: initializers, attributes, subgraphs, functions. A chance match inside
# weights names a file that does not exist, which is as constant as the weights themselves.
_EXTERNAL_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f]|[\x80-\xff][\x01-\x7f])")


def source_content(source: Source) -> dict[str, Any]:
    """Return a source's options, and the digests of everything it names.

    Raises:
        NotFound: A file, folder or module that the source names does not exist.
        FailedPrecondition: It exists and cannot be read.
    """
    match source:
        case OnnxSource():
            return {
                "onnx": file_content(source.onnx, role="source.onnx"),
                "external": _external_data(source.onnx),
            }
        case HuggingFaceSource():
            options = source.model_dump(mode="json", exclude={"huggingface"})
            return options | {"huggingface": _folder_content(source.huggingface, role="source.huggingface")}
        case TorchSource():
            options = source.model_dump(mode="json", exclude={"weights"})
            weights = source.weights and file_content(source.weights, role="source.weights")
            return options | {"weights": weights, "code": _module_content(source.torch.partition(":")[0])}
        case ExportedProgramSource():
            return {"pt2": file_content(source.pt2, role="source.pt2")}
        case ArtifactSource():
            return source.model_dump(mode="json")


def preprocessing_content(preprocessing: Preprocessing | None) -> dict[str, Any] | None:
    """Return a preprocessing's options, with its tokenizer's digest in the place of the path."""
    if preprocessing is None:
        return None
    if not isinstance(preprocessing, TextPreprocessing):
        return preprocessing.model_dump(mode="json")
    options = preprocessing.model_dump(mode="json", exclude={"tokenizer"})
    return options | {"tokenizer": file_content(preprocessing.tokenizer, role="preprocessing.tokenizer")}


def dataset_content(dataset: DatasetConfig | None, *, role: str) -> dict[str, Any] | None:
    """Return a data set's digest, how much of it is used, and the digests of images it refers to."""
    if dataset is None:
        return None
    return {
        "file": file_content(dataset.file, role=f"{role}.file"),
        "samples": dataset.samples,
        "images": _referenced_images(dataset.file) if dataset.file.suffix == ".jsonl" else {},
    }


def file_content(path: Path, *, role: str) -> str:
    """Return a file's SHA-256; ``role`` is the key path that names it in error messages."""
    try:
        return sha256_file(path)
    except OSError as error:
        raise _unreadable(path, role, error) from error


def _folder_content(path: Path, *, role: str) -> str:
    try:
        return sha256_folder(path, ignored=_NOT_OF_THE_MODEL)
    except OSError as error:
        raise _unreadable(path, role, error) from error


def _unreadable(path: Path, role: str, error: OSError) -> NotFound | FailedPrecondition:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFound(f"{role}: expected {path} to exist, and it (or a file in it) does not: {error}")
    return FailedPrecondition(f"{role}: {path} cannot be read: {error}")


def _external_data(onnx: Path) -> dict[str, str | None]:
    """Digests of the files that hold weights outside an ONNX file; ``None`` where importing will refuse."""
    folder = onnx.parent.resolve()
    digests: dict[str, str | None] = {}
    for location in sorted(_external_locations(onnx)):
        file = (folder / location).resolve()
        within = file.is_relative_to(folder) and file.is_file()
        digests[location] = file_content(file, role="source.onnx (external data)") if within else None
    return digests


def _external_locations(onnx: Path) -> set[str]:
    if onnx.stat().st_size == 0:
        return set()
    locations = set()
    with onnx.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for match in _EXTERNAL_LOCATION.finditer(content):
            varint = match.group(1)
            length = varint[0] if len(varint) == 1 else (varint[0] & 0x7F) | varint[1] << 7
            name = content[match.end() : match.end() + length]
            if length < 4096 and len(name) == length and b"\0" not in name:
                locations.add(name.decode("utf-8", "surrogateescape"))
    return locations


def _module_content(module: str) -> dict[str, Any]:
    """Digest the code behind a factory: its module and all it imports, and the package around it with all it holds."""
    file = module_file(module)
    modules = {name: file_content(path, role=f"source.torch ({name})") for name, path in imported_files(module).items()}
    # A package may hold more that shapes the model than code, and code that is imported by computed names.
    is_packaged = file.name == "__init__.py" or "." in module
    package = _folder_content(file.parent, role=f"source.torch ({module})") if is_packaged else None
    return {"modules": modules, "package": package}


def _referenced_images(jsonl: Path) -> dict[str, str | None]:
    digests: dict[str, str | None] = {}
    folder = jsonl.parent.resolve()
    try:
        with jsonl.open("rb") as lines:
            for line in lines:
                name = _image_name(line) if b'"image"' in line else None
                if name is not None and name not in digests:
                    file = (folder / name).resolve()
                    # Of anything else the set will be refused.
                    is_read = file.is_relative_to(folder) and file.is_file()
                    digests[name] = file_content(file, role=f"{jsonl} (image)") if is_read else None
    except OSError as error:
        raise _unreadable(jsonl, "image", error) from error
    return digests


def _image_name(line: bytes) -> str | None:
    # Malformed lines are reported, with their number, by whoever loads the set; here they refer to nothing.
    try:
        sample = json.loads(line)
    except ValueError:
        return None
    name = sample.get("image") if isinstance(sample, dict) else None
    return name if isinstance(name, str) else None
