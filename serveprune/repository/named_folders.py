"""Models that the command line names, each with the folder that it lies in, whatever that is called."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from serveprune.errors import InvalidArgument
from serveprune.repository.model_folder import expect_name, read_model


def named_folders(options: Iterable[str]) -> dict[str, Path]:
    """Return which folder each model lies in, as `NAME=FOLDER` says it.

    Raises:
        InvalidArgument: One says something else, or a name comes twice.
    """
    folders: dict[str, Path] = {}
    for option in options:
        name, separator, folder = option.partition("=")
        if not separator or not folder:
            raise InvalidArgument(f"--model: expected NAME=FOLDER, such as minilm=/mnt/models, got {option[:200]!r}")
        expect_name(name)
        if name in folders:
            raise InvalidArgument(f"--model: expected each name once, got {name} more than once")
        folders[name] = Path(folder).absolute()
    return folders


def described(folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Return models as `models` of a config file would say them, each as its folder describes it.

    What is refused in a model repository is refused here, too.

    Raises:
        InvalidArgument: There is no such folder, no model in it, or what a folder must not have.
        ConfigError: What is wrong in the serveprune.yaml of a folder.
    """
    models = {}
    for name, folder in folders.items():
        if not folder.is_dir():
            raise InvalidArgument(f"--model: expected the folder of {name}, but {folder} is none")
        entry = read_model(folder, name=name, root=folder).entry
        models[name] = entry.model_dump(mode="json", exclude_unset=True)
    return models
