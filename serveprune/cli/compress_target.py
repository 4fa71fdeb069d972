"""What `compress` works on, from a configuration or from a path on the command line."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import ValidationError

from serveprune.config.loading import load_config, load_profile
from serveprune.config.locations import Locations
from serveprune.config.model import (
    DatasetConfig,
    ExportedProgramSource,
    HuggingFaceSource,
    ModelConfig,
    OnnxSource,
    Source,
)
from serveprune.config.profile import GateConfig, PassConfig, ProfileConfig, QuantizeOptions
from serveprune.config.root import ServePruneConfig
from serveprune.config.server import BuildsConfig, StoreConfig
from serveprune.errors import InvalidArgument, NotFound

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/")
_DEFAULT_CONFIG = Path("serveprune.yaml")
_BUILT_IN_PROFILES = {
    "int8": ProfileConfig(passes=(PassConfig(quantize=QuantizeOptions()),), gate=GateConfig(min_quality=0.97))
}

Task = Literal["feature-extraction", "sequence-classification", "image-classification"]
Answers = Literal["classification", "embedding", "generic"]
Pooling = Literal["mean", "cls", "max", "none"]
TaskFlag = Literal[
    "classification", "embedding", "generic", "feature-extraction", "sequence-classification", "image-classification"
]


@dataclass(frozen=True, slots=True)
class SourceFlags:
    """What the command line says about the model; pooling and normalize are of a Hugging Face folder."""

    task: TaskFlag | None
    pooling: Pooling
    normalize: bool

    @property
    def source_task(self) -> Task | None:
        """What a folder is for, if that is what ``task`` says."""
        match self.task:
            case "feature-extraction" | "sequence-classification" | "image-classification" as told:
                return told
            case _:
                return None

    @property
    def answers(self) -> Answers | None:
        """What the answers mean, if that is what ``task`` says."""
        match self.task:
            case "classification" | "embedding" | "generic" as told:
                return told
            case _:
                return None


@dataclass(frozen=True, slots=True)
class Target:
    """One tier to build, and where."""

    name: str
    model: ModelConfig
    tier: str
    profile: ProfileConfig
    store: StoreConfig
    builds: BuildsConfig
    threads_of_serving: int

    def with_model(self, model: ModelConfig) -> Self:
        """Return the same target for another description of the model."""
        return replace(self, model=model)


def local_store(path: Path) -> Path:
    """Return the folder that `--store` names.

    Raises:
        InvalidArgument: It is the URL of a shared store, which needs more than a name.
    """
    if _URL.match(str(path)):
        raise InvalidArgument(
            f"--store: expected a folder, got a URL: {path}; set store.path in a config, and name that with --config"
        )
    return path


def resolve_target(model: str, *, profile: str, config: Path | None, store: Path | None, flags: SourceFlags) -> Target:
    """Find the model and the profile that the command line names.

    Args:
        model: A model's name in the configuration; without ``config`` also a path to a model.
        profile: A profile's name in the configuration, a YAML file, or a built-in profile.
        config: The configuration. Default: ``serveprune.yaml`` here, unless ``model`` is a path.
        store: Replaces the configuration's store.
        flags: What the answers mean, for any model; the others are used when ``model`` is the path of a Hugging Face
            folder.

    Raises:
        NotFound: There is no such model or profile.
        InvalidArgument: The path is no model.
        ConfigError: The configuration or the profile's file is wrong.
    """
    path = Path(model)
    if config is None and not path.exists() and _DEFAULT_CONFIG.exists():
        config = _DEFAULT_CONFIG
    settings = load_config(config) if config is not None else None
    if settings is None:
        name, described = _name_of(path), ModelConfig(source=_source_of(path, flags))
    elif model in settings.models:
        name, described = model, settings.model(model)
    else:
        raise NotFound(f"{config} has no model {model!r}; it has: {', '.join(settings.models)}")
    if flags.answers is not None:
        described = described.model_copy(update={"task": flags.answers})
    elif flags.task is not None and not (settings is None and isinstance(described.source, HuggingFaceSource)):
        raise InvalidArgument(
            f"--task {flags.task} says what a model folder given by its path is for; expected one of "
            f"{', '.join(get_args(Answers))} for {model}"
        )
    store_config = settings.store if settings else StoreConfig()
    if store is not None or settings is None:
        store_config = store_config.model_copy(update={"path": local_store(store or store_config.folder).absolute()})
    return Target(
        name=name,
        model=described,
        tier=_name_of(Path(profile)),
        profile=_profile(profile, settings),
        store=store_config,
        builds=settings.builds if settings else BuildsConfig(),
        threads_of_serving=settings.server.threads_per_executor if settings else 1,
    )


def with_samples(target: Target, *, calibration: Path | None, evaluation: Path | None) -> Target:
    """Return the same target with the sample files that the command line names.

    Raises:
        InvalidArgument: A file cannot be a data set.
    """
    given = {
        role: _dataset(file, role=role)
        for role, file in (("calibration", calibration), ("evaluation", evaluation))
        if file is not None
    }
    return target.with_model(target.model.model_copy(update=given))


def _dataset(file: Path, *, role: str) -> DatasetConfig:
    try:
        return DatasetConfig.model_validate({"file": file}, context=Locations(Path.cwd()))
    except ValidationError as error:
        reasons = "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
        raise InvalidArgument(f"--{role}: {reasons}") from error


def _name_of(path: Path) -> str:
    return path.name.removesuffix(path.suffix) or path.absolute().name


def _profile(profile: str, settings: ServePruneConfig | None) -> ProfileConfig:
    declared = settings.profiles if settings else {}
    if profile in declared:
        return declared[profile]
    if Path(profile).is_file():
        return load_profile(Path(profile))
    if profile in _BUILT_IN_PROFILES:
        return _BUILT_IN_PROFILES[profile]
    known = ", ".join(sorted({*declared, *_BUILT_IN_PROFILES}))
    raise NotFound(f"--profile: expected a YAML file or one of {known}; got {profile!r}")


def _source_of(path: Path, flags: SourceFlags) -> Source:
    absolute = path.absolute()
    if path.is_dir() and (path / "config.json").is_file():
        task = flags.source_task or _declared_task(path / "config.json")
        return HuggingFaceSource(huggingface=absolute, task=task, pooling=flags.pooling, normalize=flags.normalize)
    if path.is_file() and path.suffix == ".onnx":
        return OnnxSource(onnx=absolute)
    if path.is_file() and path.suffix == ".pt2":
        return ExportedProgramSource(pt2=absolute)
    if path.exists():
        raise InvalidArgument(f"{path}: expected an .onnx file, a .pt2 file or a folder with a config.json")
    raise NotFound(f"{path}: no such file or folder, and no {_DEFAULT_CONFIG} here that could name it as a model")


def _declared_task(file: Path) -> Task:
    try:
        architectures = json.loads(file.read_text(encoding="utf-8")).get("architectures") or []
    except (ValueError, AttributeError) as error:
        raise InvalidArgument(f"{file}: expected a JSON object, as save_pretrained writes it: {error}") from error
    if any(str(name).endswith("ForSequenceClassification") for name in architectures):
        return "sequence-classification"
    if any(str(name).endswith("ForImageClassification") for name in architectures):
        return "image-classification"
    return "feature-extraction"
