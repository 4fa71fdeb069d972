"""What goes into an archive: the files that a model is made of, and how `model-config.yaml` names them."""

import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from serveprune.artifacts.code_content import imported_files, is_installed, module_file
from serveprune.artifacts.dense import dense_of
from serveprune.artifacts.opening import open_store
from serveprune.artifacts.source_content import dataset_content, preprocessing_content, source_content
from serveprune.config.expansion import escaped
from serveprune.config.model import (
    DENSE,
    ArtifactSource,
    DatasetConfig,
    ExportedProgramSource,
    HuggingFaceSource,
    ModelConfig,
    OnnxSource,
    Source,
    TorchSource,
)
from serveprune.config.profile import ProfileConfig
from serveprune.config.root import ServePruneConfig
from serveprune.config.server import StoreConfig
from serveprune.errors import FailedPrecondition
from serveprune.handlers.torchserve.settings import config_of

FILES = "model-files"
"""Folder of the archive that holds all but code. No module can have this name, so it stands in no factory's way."""

_NOT_OF_A_PACKAGE = shutil.ignore_patterns(".*", "__pycache__")
_OF_EXECUTION = frozenset({"executors", "threads_per_executor"})


def of_the_store(config: ServePruneConfig, model: ModelConfig, *, name: str) -> ModelConfig:
    """Return the same model with its graph in the artifact store as the source, so that no other file of it is needed.

    Raises:
        FailedPrecondition: The store does not have it.
    """
    store = open_store(config.store)
    dense = dense_of(store, model, any_environment=True)
    if dense is None:
        raise FailedPrecondition(
            f"--by-reference: expected model {name} in the store {config.store.path}, got nothing; `serveprune "
            "compress` or `serveprune serve` imports it"
        )
    source = ArtifactSource(artifact=dense.key, task=getattr(model.source, "task", None))
    return model.model_copy(update={"source": source})


def lay_out(config: ServePruneConfig, model: ModelConfig, *, name: str, folder: Path) -> dict[str, Any]:
    """Copy all that a model is made of into a folder, and return the section of `model-config.yaml` that describes it.

    The artifact store is named by its own path: what another server built there is used as it is.

    Args:
        config: The config that the model is of.
        model: One version of it.
        name: Of the model.
        folder: Of the archive to be; empty.

    Raises:
        NotFound: A file or module that it names does not exist.
        FailedPrecondition: A file cannot be read, or what was copied is not what the config names.
    """
    copies = _Copies(folder)
    try:
        section = {**_entry(model, copies), **_beside(config, model, copies, name=name)}
    except OSError as error:
        raise FailedPrecondition(f"model {name}: its files cannot be copied: {error}") from error
    packed = config_of(section, model=name, version=model.version, folder=folder).model(name)
    if _content(packed) != _content(model):
        raise FailedPrecondition(f"model {name}: its files changed while they were copied; try again")
    # Whoever reads the file replaces variables of the environment, which has been done.
    return {key: escaped(value) for key, value in section.items()}


class _Copies:
    """Copies files into the archive's folder, each to a place of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def file(self, file: Path, place: str) -> str:
        """Copy a file; return where it is in the archive."""
        target = self._folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        return place

    def tree(self, folder: Path, place: str) -> str:
        """Copy a folder but for what is hidden or compiled; return where it is in the archive."""
        shutil.copytree(folder, self._folder / place, ignore=_NOT_OF_A_PACKAGE, dirs_exist_ok=True)
        return place


def _entry(model: ModelConfig, copies: _Copies) -> dict[str, Any]:
    """Return the model's keys; the version is the archive's own."""
    entry = model.model_dump(mode="json", exclude_unset=True, exclude_none=True, exclude={"version"})
    entry["source"] |= _source(model.source, copies)
    if (tokenizer := getattr(model.preprocessing, "tokenizer", None)) is not None:
        entry["preprocessing"]["tokenizer"] = copies.file(tokenizer, f"{FILES}/preprocessing/{tokenizer.name}")
    for role, dataset in (("calibration", model.calibration), ("evaluation", model.evaluation)):
        if dataset is not None:
            entry[role]["file"] = _dataset(dataset, copies, role=role)
    return entry


def _source(source: Source, copies: _Copies) -> dict[str, str]:
    place = f"{FILES}/source"
    match source:
        case OnnxSource():
            for location, digest in source_content(source)["external"].items():
                if digest is not None:
                    copies.file(source.onnx.parent / location, f"{place}/{location}")
            return {"onnx": copies.file(source.onnx, f"{place}/{source.onnx.name}")}
        case HuggingFaceSource():
            return {"huggingface": copies.tree(source.huggingface, place)}
        case TorchSource():
            _code(source.torch.partition(":")[0], copies)
            weights = source.weights
            return {} if weights is None else {"weights": copies.file(weights, f"{place}/{weights.name}")}
        case ExportedProgramSource():
            return {"pt2": copies.file(source.pt2, f"{place}/{source.pt2.name}")}
        case ArtifactSource():
            return {}


def _code(module: str, copies: _Copies) -> None:
    """Copy a factory's code to the archive's top, from where TorchServe lets workers import."""
    file = module_file(module)
    if is_installed(file):
        return
    for name, path in imported_files(module).items():
        place = PurePosixPath(*name.split("."))
        copies.file(path, str(place / path.name if path.name == "__init__.py" else place.with_suffix(".py")))
    if file.name == "__init__.py" or "." in module:
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        copies.tree(file.parent, package.replace(".", "/"))


def _dataset(dataset: DatasetConfig, copies: _Copies, *, role: str) -> str:
    content = dataset_content(dataset, role=role)
    assert content is not None
    for name, digest in content["images"].items():
        if digest is not None:
            copies.file(dataset.file.parent / name, f"{FILES}/{role}/{name}")
    return copies.file(dataset.file, f"{FILES}/{role}/{dataset.file.name}")


def _places(store: StoreConfig) -> dict[str, str]:
    """Return where artifacts lie, whatever the folder of the archive is; copies of shared ones too."""
    places = {"path": str(store.path)}
    return places | {"cache_path": str(store.cache_path)} if store.is_shared else places


def _beside(config: ServePruneConfig, model: ModelConfig, copies: _Copies, *, name: str) -> dict[str, Any]:
    """Return what is not the model's own: where artifacts lie, and how its tiers are made and chosen."""
    profiles = {tier: config.profile(tier) for tier in model.tiers if tier != DENSE}
    beside: dict[str, Any] = {
        "store": config.store.model_dump(mode="json", exclude_unset=True) | _places(config.store),
        "builds": _said(config.builds),
        # Latency is measured with as many threads as serving has, which is part of what an artifact is found by.
        "server": config.server.model_dump(mode="json", exclude_unset=True, include=set(_OF_EXECUTION)),
        "profiles": {
            tier: _profile(profile, copies, tier=tier) for tier, profile in profiles.items() if profile is not None
        },
        "deployment": _said(config.deployments[name]) if name in config.deployments else None,
    }
    return {key: value for key, value in beside.items() if value}


def _profile(profile: ProfileConfig, copies: _Copies, *, tier: str) -> dict[str, Any]:
    said = _said(profile)
    for number, step in enumerate(profile.passes):
        for option, path in step.options.files().items():
            *sections, last = option.split(".")
            place = said["passes"][number][step.name]
            for section in sections:
                place = place[section]
            place[last] = copies.file(path, f"{FILES}/profiles/{tier}/{number}/{path.name}")
    return said


def _said(config: Any) -> dict[str, Any]:
    said: dict[str, Any] = config.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return said


def _content(model: ModelConfig) -> list[dict[str, Any] | None]:
    return [
        source_content(model.source),
        preprocessing_content(model.preprocessing),
        dataset_content(model.calibration, role="calibration"),
        dataset_content(model.evaluation, role="evaluation"),
    ]
