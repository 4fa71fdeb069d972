import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from serveprune.config.consistency import consistency_problems
from serveprune.config.document import Document, parse_document
from serveprune.config.explanation import explain
from serveprune.config.locations import Locations
from serveprune.config.model import ModelEntry
from serveprune.config.problem import Problem, description
from serveprune.config.profile import ProfileConfig
from serveprune.config.root import ServePruneConfig
from serveprune.config.surroundings import completed_by_surroundings, problems_of_surroundings
from serveprune.errors import ConfigError

_Model = TypeVar("_Model", bound=BaseModel)
_MAX_FILE_BYTES = 4 * 2**20


def load_config(
    path: Path,
    *,
    environment: Mapping[str, str] | None = None,
    more_models: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> ServePruneConfig:
    """Read ``serveprune.yaml``; relative paths in it become absolute against its folder.

    Args:
        path: The file.
        environment: Values for `${NAME}` in the file, and defaults of host and store. Default: the process's
            environment.
        more_models: Are taken as if they stood under `models`, beside those of the file.

    Raises:
        ConfigError: All that is wrong in it, one line each: ``FILE:LINE: key.path: expected ..., got ...``.
    """
    return _parse_whole(_read(path), file=path, folder=path.parent, environment=environment, more_models=more_models)


def load_config_content(
    content: bytes, *, name: str, folder: Path, environment: Mapping[str, str] | None = None
) -> ServePruneConfig:
    """Read what a ``serveprune.yaml`` in a folder would hold.

    Args:
        content: Of the file.
        name: What error messages call it.
        folder: Relative paths in it become absolute against this one.
        environment: As for `load_config`.

    Raises:
        ConfigError: As for `load_config`.
    """
    return _parse_whole(content, file=Path(name), folder=folder, environment=environment)


def load_entry(path: Path, *, name: str, completed: Callable[[dict[str, Any]], dict[str, Any]]) -> ModelEntry:
    """Read a file that holds one model, as it would stand under ``models.NAME``; without the file nothing is said.

    Variables of the environment are not for it: whoever may add a model may not read them.

    Args:
        path: The file; relative paths in it become absolute against its folder.
        name: Of the model.
        completed: Adds to what the file says what it leaves to others.

    Raises:
        ConfigError: As for `load_config`.
    """

    def check(said: Mapping[str, Any]) -> list[Problem]:
        found = consistency_problems({"models": {name: {**said, "tiers": []}}})
        return [Problem(problem.path[2:], problem.message) for problem in found if problem.path[:2] == ("models", name)]

    return _parse(
        _read(path) if path.exists() else b"{}",
        ModelEntry,
        file=path,
        folder=path.parent,
        check=check,
        environment={},
        completed=completed,
    )


def load_profile(path: Path, *, environment: Mapping[str, str] | None = None) -> ProfileConfig:
    """Read a file that holds one profile, as it would stand under ``profiles.NAME``.

    Raises:
        ConfigError: As for `load_config`.
    """
    content = _read(path)
    return _parse(content, ProfileConfig, file=path, folder=path.parent, check=lambda _: [], environment=environment)


def _parse_whole(
    content: bytes,
    *,
    file: Path,
    folder: Path,
    environment: Mapping[str, str] | None,
    more_models: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> ServePruneConfig:
    surroundings = os.environ if environment is None else environment

    def check(data: Mapping[str, Any]) -> list[Problem]:
        return [*problems_of_surroundings(surroundings), *consistency_problems(data)]

    return _parse(
        content,
        ServePruneConfig,
        file=file,
        folder=folder,
        check=check,
        environment=surroundings,
        completed=lambda data: completed_by_surroundings(_with_models(data, more_models, file=file), surroundings),
    )


def _parse(
    content: bytes,
    model: type[_Model],
    *,
    file: Path,
    folder: Path,
    check: Callable[[Mapping[str, Any]], list[Problem]],
    environment: Mapping[str, str] | None,
    completed: Callable[[dict[str, Any]], dict[str, Any]] = lambda data: data,
) -> _Model:
    text = _decoded(content, file=file)
    document = parse_document(text, environment=os.environ if environment is None else environment)
    problems = list(document.problems)
    loaded = None
    # An empty file says nothing, which is all that some need to say.
    data = {} if document.data is None and model is ModelEntry else document.data
    if isinstance(data, dict):
        data = completed(data)
        try:
            loaded = model.model_validate(_with_defaulted_sections(data, model), context=Locations(folder.absolute()))
        except ValidationError as error:
            found = (explain(each, root=model) for each in error.errors(include_url=False))
            # What could not be read was reported already, and has no value that could be judged.
            unread = {problem.path for problem in problems}
            problems += (problem for problem in found if problem is not None and problem.path not in unread)
        problems += check(data)
    elif not problems:
        keys = ", ".join(model.model_fields)
        problems.append(Problem((), f"expected a mapping with keys of {keys}, got {description(document.data)}", 1))
    if problems or loaded is None:
        raise ConfigError(_texts(problems, document=document, file=file))
    return loaded


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"{path}: expected a readable file, got: {error.strerror}"]) from error


def _decoded(content: bytes, *, file: Path) -> str:
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigError([f"{file}: expected a file of at most {_MAX_FILE_BYTES} bytes, got more"])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        found = f"the byte 0x{error.object[error.start]:02X}"
        raise ConfigError([f"{file}:{line}: expected UTF-8 text, got {found}"]) from None


def _with_models(data: dict[str, Any], more: Mapping[str, Mapping[str, Any]], *, file: Path) -> dict[str, Any]:
    own = data.get("models", {})
    if not more or not isinstance(own, dict):
        return data
    both = [name for name in more if name in own]
    if both:
        raise ConfigError(
            [f"{file}: models.{name}: expected another name: --model names this one too" for name in both]
        )
    return data | {"models": own | dict(more)}


def _with_defaulted_sections(data: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    # The default of the store's path is relative to the file's folder like any other, so a missing section is
    # validated as an empty one.
    return {"store": {}, "repository": {}, **data} if "store" in model.model_fields else data


def _texts(problems: list[Problem], *, document: Document, file: Path) -> list[str]:
    placed = [
        Problem(problem.path, problem.message, problem.line or document.line(problem.path)) for problem in problems
    ]
    ordered = sorted(placed, key=lambda problem: (problem.line or 0, [str(part) for part in problem.path]))
    return list(dict.fromkeys(problem.text(file) for problem in ordered))
