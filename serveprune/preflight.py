"""What of a config can be judged before anything starts, but not from its text alone.

Is what runs the models installed, do the data fit the graph, can the tiers be built from them, and are certificate and
tokens in order?
"""

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from serveprune.backends.selection import OPENVINO
from serveprune.config.model import DENSE, ModelConfig, OnnxSource
from serveprune.config.profile import ProfileConfig, QuantizeOptions
from serveprune.config.root import ServePruneConfig
from serveprune.errors import ConfigError, ServePruneError
from serveprune.evaluation.dataset import load_dataset
from serveprune.frontends.authorization import watched_tokens
from serveprune.frontends.certificates import watched_certificate
from serveprune.oip.tensor import TensorSpec
from serveprune.preprocessing.loading import load_preprocessor
from serveprune.preprocessing.protocol import Preprocessor

_TRACING_PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto")
_PICTURES_DECODED = 32
"""Enough to see whether pictures are what the model takes, without a server's start waiting for thousands."""


def check_packages(config: ServePruneConfig) -> list[str]:
    """Find what the config needs and is not installed: a model's only backend, and what traces are made with.

    With ``auto`` there is another backend, which serves the model.

    Returns:
        One line per problem: the setting, what was expected, what to do.
    """
    return [*_missing_tracing(config), *_missing_backends(config)]


def _missing_tracing(config: ServePruneConfig) -> list[str]:
    if config.server.tracing is None or all(_is_installed(package) for package in _TRACING_PACKAGES):
        return []
    problem = (
        f"server.tracing: expected the packages {' and '.join(_TRACING_PACKAGES)}, which make and send traces, but not "
        'all of them are installed: pip install "serveprune[tracing]", or leave the key out'
    )
    return [problem]


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # what it lies in is not
        return False


def _missing_backends(config: ServePruneConfig) -> list[str]:
    if importlib.util.find_spec(OPENVINO) is not None:
        return []
    return [
        f"{_place(config, name, version)}.backend: expected the package {OPENVINO}, which is to run this model, but it "
        "is not installed: "
        'pip install "serveprune[openvino]", or set backend: onnxruntime or auto'
        for (name, version), model in config.served().items()
        if model.backend == OPENVINO
    ]


def check_secrets(config: ServePruneConfig, *, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Find a certificate that does not fit its key, and tokens that are none.

    Returns:
        One line per problem: the setting, what was expected, what came; of tokens and keys nothing is quoted.
    """
    server = config.server
    checks: list[Callable[[], object]] = []
    if server.tls is not None:
        checks.append(partial(watched_certificate, server.tls))
    if server.tokens is not None:
        checks.append(partial(watched_tokens, server.tokens, environment=environment))
    if server.admin is not None:
        checks.append(
            partial(watched_tokens, server.admin.tokens, environment=environment, setting="server.admin.tokens")
        )
    problems = []
    for check in checks:
        try:
            check()
        except ServePruneError as error:
            problems.append(error.message)
    return problems


def check_datasets(config: ServePruneConfig) -> list[str]:
    """Find sources that cannot be read, files that do not fit their graph's inputs, and sets that tiers lack.

    Graphs are not exported, so a model whose inputs only an import can tell is passed over. So is every model
    where the compressing half is not installed: nothing is built there, and no data set is used.

    Returns:
        One line per problem: the model, the file, the line or array, what was expected, what came.
    """
    if not all(importlib.util.find_spec(package) for package in ("onnx", "onnx_ir")):
        return []
    return [
        f"{_place(config, name, version)}.{problem}"
        for (name, version), model in config.served().items()
        for problem in (
            *_problems_of_model(model, config),
            *_missing_samples(model),
            *_missing_calibration(model, config),
        )
    ]


def _place(config: ServePruneConfig, name: str, version: str) -> str:
    return f"models.{name}.versions.{version}" if config.models[name].versions else f"models.{name}"


def _problems_of_model(model: ModelConfig, config: ServePruneConfig) -> list[str]:
    # Only the compressing half can read sources, and the serving half imports this module.
    from serveprune.graph.interface import source_inputs

    try:
        inputs = source_inputs(model)
    except ServePruneError as error:
        return [f"source: {error.message}"]
    if inputs is None:
        return []
    try:
        preprocessor = _preprocessor(model, inputs)
    except ConfigError as error:
        return list(error.problems)
    except ServePruneError as error:
        return [f"preprocessing: {error.message}"]
    return [
        *_problems_of_dataset("calibration", model, inputs, preprocessor, labels_for=_tier_with_labels(model, config)),
        *_problems_of_dataset("evaluation", model, inputs, preprocessor),
    ]


def _missing_samples(model: ModelConfig) -> list[str]:
    tiers = [tier for tier in model.tiers if tier != DENSE]
    if not tiers or model.calibration is not None or model.evaluation is not None:
        return []
    problem = (
        f"evaluation: expected a set to judge {tiers[0]} on (or a calibration set, of which a quarter is held out), "
        "got none; without one the tier cannot be built"
    )
    return [problem]


def _missing_calibration(model: ModelConfig, config: ServePruneConfig) -> list[str]:
    """Say which tier prunes, or chooses scheme static for this graph, and has no samples to learn from."""
    choosing = [tier for tier in model.tiers if _chooses_scheme(config.profile(tier))]
    if model.calibration is not None or model.evaluation is None:
        return []
    pruning = [tier for tier in model.tiers if _prunes_by_samples(config.profile(tier))]
    if pruning:
        return [
            f"calibration: expected a calibration set, because profile {pruning[0]} prunes by its samples, got none"
        ]
    learning = _tier_with_labels(model, config)
    if learning is not None:
        return [f"calibration: expected a labelled set, because profile {learning} learns from it, got none"]
    distilling = [tier for tier in model.tiers if _distills(config.profile(tier))]
    if distilling:
        return [f"calibration: expected a calibration set, because profile {distilling[0]} learns from it, got none"]
    if not choosing or not isinstance(model.source, OnnxSource):
        return []
    from serveprune.compression.quantization.scheme import multiplications
    from serveprune.graph.onnx_file import read_header

    try:
        scheme = multiplications(read_header(model.source.onnx)).scheme
    except ServePruneError:
        return []  # told as a problem of the source
    if scheme == "dynamic":
        return []
    problem = (
        f"calibration: expected a calibration set, because profile {choosing[0]} quantizes this graph, most of whose "
        "work is convolutions, with scheme static, got none; scheme: dynamic needs none"
    )
    return [problem]


def _prunes_by_samples(profile: ProfileConfig | None) -> bool:
    steps = profile.passes if profile is not None else ()
    return any(step.prune is not None and step.prune.needs_calibration for step in steps)


def _tier_with_labels(model: ModelConfig, config: ServePruneConfig) -> str | None:
    """Return the first tier with a pass that cannot do without labels."""
    profiles = {tier: config.profile(tier) for tier in model.tiers}
    found = (
        tier
        for tier, profile in profiles.items()
        for step in (profile.passes if profile else ())
        if step.lottery or (step.distill and step.distill.losses.labels)
    )
    return next(found, None)


def _distills(profile: ProfileConfig | None) -> bool:
    return any(step.distill is not None for step in (profile.passes if profile is not None else ()))


def _chooses_scheme(profile: ProfileConfig | None) -> bool:
    steps = profile.passes if profile is not None else ()
    return any(isinstance(step.options, QuantizeOptions) and step.options.scheme == "auto" for step in steps)


def _preprocessor(model: ModelConfig, inputs: Sequence[TensorSpec]) -> Preprocessor | None:
    from serveprune.graph.declared_preprocessing import store_preprocessing

    with TemporaryDirectory(prefix="serveprune-preflight-") as folder:
        preprocessing, _ = store_preprocessing(model, folder=Path(folder))
        if preprocessing is None:
            return None
        return load_preprocessor(preprocessing, folder=Path(folder), inputs=inputs)


def _problems_of_dataset(
    role: str,
    model: ModelConfig,
    inputs: Sequence[TensorSpec],
    preprocessor: Preprocessor | None,
    *,
    labels_for: str | None = None,
) -> list[str]:
    dataset = model.calibration if role == "calibration" else model.evaluation
    if dataset is None:
        return []
    try:
        loaded = load_dataset(dataset, inputs=inputs, preprocessor=preprocessor, pictures_decoded=_PICTURES_DECODED)
    except ConfigError as error:
        return [f"{role}: {problem}" for problem in error.problems]
    if labels_for is not None and loaded.labels is None:
        problem = (
            f"{role}: expected labels in {dataset.file.name}, because profile {labels_for} learns from them, got none; "
            "a .npz has them as an array `label`, a .jsonl as `label` in each line"
        )
        return [problem]
    return []
