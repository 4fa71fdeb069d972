"""What a folder of models has, and what one of them says: read only, and nothing outside the folder."""

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serveprune.artifacts.digest import sha256_json
from serveprune.config.loading import load_entry
from serveprune.config.model import ArtifactSource, ModelEntry, TorchSource
from serveprune.config.names import NAME_PATTERN
from serveprune.errors import FailedPrecondition, InvalidArgument, NotFound

ENTRY_FILE = "serveprune.yaml"

_MOST_FILES = 10_000
_PICKLES = frozenset((".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib"))
_UNFINISHED = re.compile(r"\.(tmp|part|partial|filepart|crdownload)$|~$|^\..+\.[A-Za-z0-9]{6}$", re.IGNORECASE)
"""Names that copying programs give to what they have not finished; the last is rsync's."""


@dataclass(frozen=True, slots=True)
class FolderContent:
    """What a file system says of the files of one model.

    Attributes:
        files: Path within the model's folder -> size, time of change, and number, which differ when the file does.
        newest_change: Seconds since the epoch.
    """

    files: Mapping[str, tuple[int, int, int]]
    newest_change: float

    @property
    def token(self) -> str:
        """Differs when any file does."""
        return _token(self.files.items())

    @property
    def is_unfinished(self) -> bool:
        """Whether a file has a name as only a program gives it that is still writing."""
        return any(_UNFINISHED.search(Path(name).name) for name in self.files)

    def is_whole(self, *, seen: str | None, now: float, settle_seconds: float) -> bool:
        """Tell whether it is taken to be written.

        Args:
            seen: Token of what it was at the look before; ``None`` at the first look.
            now: Seconds since the epoch.
            settle_seconds: What has changed within them may be changing still, if there was no look before.
        """
        if self.is_unfinished or not self.files:
            return False
        return now - self.newest_change > settle_seconds if seen is None else seen == self.token


@dataclass(frozen=True, slots=True)
class FolderModel:
    """A model as its folder describes it.

    Attributes:
        token: Of all its files.
        contents: Version -> what its files were like: another one means another graph or other data.
    """

    entry: ModelEntry
    token: str
    contents: Mapping[str, str] = field(default_factory=dict)


def expect_name(name: str) -> None:
    """Refuse what cannot be the name of a model, and so of its folder.

    Raises:
        InvalidArgument: It cannot.
    """
    # `$` would let a newline pass.
    if not re.fullmatch(NAME_PATTERN.removesuffix("$"), name):
        raise InvalidArgument(
            "expected the name of a model: letters, digits, `.`, `_` and `-`, the first a letter, a digit or `_`, "
            f"got {name[:100]!r}"
        )


class ModelFolder:
    """A folder with a folder for each model."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """Return the names of all that may be models.

        Raises:
            FailedPrecondition: The folder cannot be read.
        """
        try:
            return sorted(
                each.name for each in os.scandir(self.path) if re.match(NAME_PATTERN, each.name) and each.is_dir()
            )
        except OSError as error:
            raise FailedPrecondition(f"the model repository cannot be read: {error.strerror}") from error

    def look(self, name: str) -> FolderContent:
        """Return what the files of a model are like.

        Raises:
            InvalidArgument: The name is none, a link leads out of the repository, there are pickles, or too many files.
            NotFound: There is no such folder.
        """
        return look_at(self._folder(name), name=name, root=self.path)

    def read(self, name: str) -> FolderModel:
        """Return a model as its folder describes it.

        Raises:
            InvalidArgument: See `look`; or there is no model in the folder, or one that a function makes.
            ConfigError: What is wrong in its serveprune.yaml.
            NotFound: There is no such folder.
        """
        return read_model(self._folder(name), name=name, root=self.path)

    def _folder(self, name: str) -> Path:
        expect_name(name)
        if not (self.path / name).is_dir():
            raise NotFound(f"the model repository has no folder {name!r}")
        return self.path / name


def look_at(folder: Path, *, name: str, root: Path) -> FolderContent:
    """Return what the files of a model are like.

    Args:
        folder: Of the model.
        name: Of the model, for messages.
        root: What no link may lead out of: the folder, or one that it is in.

    Raises:
        InvalidArgument: A link leads out of the root, there are pickles, or too many files.
    """
    files: dict[str, tuple[int, int, int]] = {}
    newest = 0.0
    for path in _walk(folder):
        _expect_inside(path, name=name, root=root)
        try:
            found = path.stat()
        except OSError:
            continue  # gone meanwhile, or a link to nothing: whoever needs it will say so
        newest = max(newest, found.st_ctime, found.st_mtime)
        if stat.S_ISDIR(found.st_mode):
            continue
        if not stat.S_ISREG(found.st_mode):
            # Whoever opened a pipe would wait for its writer.
            raise InvalidArgument(f"model {name}: expected files, got a pipe, socket or device: {path.name}")
        if path.suffix.lower() in _PICKLES:
            raise InvalidArgument(
                f"model {name}: pickles are refused, for they run code when they are read: {path.name}; save the "
                "weights as safetensors, or export the model to ONNX, and remove the file"
            )
        files[str(path.relative_to(folder))] = (found.st_size, found.st_mtime_ns, found.st_ino)
        if len(files) > _MOST_FILES:
            raise InvalidArgument(f"model {name}: expected at most {_MOST_FILES} files, got more")
    return FolderContent(files, newest)


def read_model(folder: Path, *, name: str, root: Path) -> FolderModel:
    """Return a model as its folder describes it.

    Args:
        folder: Of the model.
        name: Of the model.
        root: What no link and no path may lead out of: the folder, or one that it is in.

    Raises:
        InvalidArgument: See `look_at`; or there is no model in the folder, or one that a function makes.
        ConfigError: What is wrong in its serveprune.yaml.
    """
    content, versions = look_at(folder, name=name, root=root), _version_folders(folder)
    file = folder / ENTRY_FILE
    entry = load_entry(file, name=name, completed=lambda said: _completed(said, folder, versions, name))
    for version, model in entry.by_version.items():
        if isinstance(model.source, TorchSource):
            raise InvalidArgument(
                f"model {name}, version {version}: a torch factory runs code, which the model repository must not; "
                "name it in the config file of the server instead"
            )
        if isinstance(model.source, ArtifactSource):
            raise InvalidArgument(
                f"model {name}, version {version}: an artifact lies outside of its folder; name it in the config "
                "file of the server instead"
            )
    for path in _paths(entry.model_dump()):
        _expect_inside(path, name=name, root=root)
    return FolderModel(entry, content.token, dict(_contents(entry, content, versions)))


def _walk(folder: Path) -> Iterator[Path]:
    yield folder
    for parent, folders, files in os.walk(folder):
        for each in (*folders, *files):
            yield Path(parent, each)


def _expect_inside(path: Path, *, name: str, root: Path) -> None:
    if not path.resolve().is_relative_to(root.resolve()):
        raise InvalidArgument(
            f"model {name}: {path.name} leads out of the model repository; copy what it leads to into the folder"
        )


def _version_folders(folder: Path) -> list[str]:
    return sorted(
        each.name
        for each in folder.iterdir()
        if re.match(NAME_PATTERN, each.name) and each.is_dir() and _source(each) is not None
    )


def _source(folder: Path) -> dict[str, Any] | None:
    """Return the source that a folder is, as a config says it; ``None`` if it is none."""
    if (folder / "model.onnx").is_file():
        return {"onnx": str(folder / "model.onnx")}
    if (folder / "config.json").is_file():
        return {"huggingface": str(folder), "task": _task(folder / "config.json")}
    programs = sorted(folder.glob("*.pt2"))
    return {"pt2": str(programs[0])} if len(programs) == 1 else None


def _task(file: Path) -> str:
    try:
        architectures = json.loads(file.read_text(encoding="utf-8")).get("architectures") or []
    except (ValueError, AttributeError, OSError):
        architectures = []  # what is wrong with the file is told when the folder is imported
    for ending, task in (
        ("ForSequenceClassification", "sequence-classification"),
        ("ForImageClassification", "image-classification"),
    ):
        if any(str(architecture).endswith(ending) for architecture in architectures):
            return task
    return "feature-extraction"


def _completed(said: dict[str, Any], folder: Path, versions: list[str], name: str) -> dict[str, Any]:
    """Add to what a model's file says where its graphs are, unless it says so itself.

    Raises:
        InvalidArgument: There is none, or it is not clear which.
    """
    if "source" in said:
        return said
    source = _source(folder)
    if source is not None and (versions or "versions" in said):
        raise InvalidArgument(
            f"model {name}: expected one model, or a folder for each version, got both; take one of them away"
        )
    if source is not None:
        return said | {"source": source}
    told = said.get("versions", {})
    if not versions and not told:
        raise InvalidArgument(
            f"model {name}: expected model.onnx, one .pt2 file, a config.json as save_pretrained writes it, or "
            "a folder with one of these for each version, got none"
        )
    if not isinstance(told, dict):
        return said
    of_folders = {version: {"source": _source(folder / version)} for version in versions}
    both = {
        version: {**of_folders.get(version, {}), **each} if isinstance(each, dict) else each
        for version, each in told.items()
    }
    return said | {"versions": of_folders | both}


def _contents(entry: ModelEntry, content: FolderContent, versions: list[str]) -> Iterator[tuple[str, str]]:
    """Yield what the files of each version are like: its own, and those that are of none."""
    for version in entry.by_version:
        others = {other for other in versions if other != version}
        own = (
            (name, stated)
            for name, stated in content.files.items()
            if name != ENTRY_FILE and Path(name).parts[0] not in others
        )
        yield version, _token(own)


def _token(files: Iterable[tuple[str, tuple[int, int, int]]]) -> str:
    return sha256_json([[name, *stated] for name, stated in sorted(files)])


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _paths(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _paths(each)
