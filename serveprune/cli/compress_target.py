"""What `compress` works on, from a configuration or from a path on the command line."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from serveprune.config.loading import load_config, load_profile
from serveprune.config.model import ExportedProgramSource, HuggingFaceSource, ModelConfig, OnnxSource, Source
from serveprune.config.profile import GateConfig, PassConfig, ProfileConfig, QuantizeOptions
from serveprune.config.root import ServePruneConfig
from serveprune.config.server import BuildsConfig, StoreConfig
from serveprune.errors import InvalidArgument, NotFound

_DEFAULT_CONFIG = Path("serveprune.yaml")
_BUILT_IN_PROFILES = {
    "int8": ProfileConfig(passes=(PassConfig(quantize=QuantizeOptions()),), gate=GateConfig(min_quality=0.97))
}

Task = Literal["feature-extraction", "sequence-classification", "image-classification"]


@dataclass(frozen=True, slots=True)
class SourceFlags:
    """What the command line says about a Hugging Face folder."""

    task: Task | None
    pooling: Literal["mean", "cls", "max", "none"]
    normalize: bool


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


def resolve_target(model: str, *, profile: str, config: Path | None, store: Path | None, flags: SourceFlags) -> Target:
    """Find the model and the profile that the command line names.

    Args:
        model: A model's name in the configuration; without ``config`` also a path to a model.
        profile: A profile's name in the configuration, a YAML file, or a built-in profile.
        config: The configuration. Default: ``serveprune.yaml`` here, unless ``model`` is a path.
        store: Replaces the configuration's store.
        flags: Used when ``model`` is the path of a Hugging Face folder.

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
        name, described = model, settings.models[model]
    else:
        raise NotFound(f"{config} has no model {model!r}; it has: {', '.join(settings.models)}")
    store_config = settings.store if settings else StoreConfig()
    if store is not None or settings is None:
        store_config = store_config.model_copy(update={"path": (store or store_config.path).absolute()})
    return Target(
        name=name,
        model=described,
        tier=_name_of(Path(profile)),
        profile=_profile(profile, settings),
        store=store_config,
        builds=settings.builds if settings else BuildsConfig(),
        threads_of_serving=settings.server.threads_per_executor if settings else 1,
    )


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
        task = flags.task or _declared_task(path / "config.json")
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
