"""What of a config can be judged before anything starts, but not from its text alone: do the data fit the graph?"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from serveprune.config.model import ModelConfig
from serveprune.config.root import ServePruneConfig
from serveprune.errors import ConfigError, ServePruneError
from serveprune.evaluation.dataset import load_dataset
from serveprune.oip.tensor import TensorSpec
from serveprune.preprocessing.loading import load_preprocessor
from serveprune.preprocessing.protocol import Preprocessor


def check_datasets(config: ServePruneConfig) -> list[str]:
    """Find sources that cannot be read, and calibration and evaluation files that do not fit their graph's inputs.

    Graphs are not exported, so a model whose inputs only an import can tell is passed over. So is every model
    where the compressing half is not installed: nothing is built there, and no data set is used.

    Returns:
        One line per problem: the model, the file, the line or array, what was expected, what came.
    """
    if not all(importlib.util.find_spec(package) for package in ("onnx", "onnx_ir")):
        return []
    return [
        f"models.{name}.{problem}" for name, model in config.models.items() for problem in _problems_of_model(model)
    ]


def _problems_of_model(model: ModelConfig) -> list[str]:
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
        *_problems_of_dataset("calibration", model, inputs, preprocessor),
        *_problems_of_dataset("evaluation", model, inputs, preprocessor),
    ]


def _preprocessor(model: ModelConfig, inputs: Sequence[TensorSpec]) -> Preprocessor | None:
    from serveprune.graph.declared_preprocessing import store_preprocessing

    with TemporaryDirectory(prefix="serveprune-preflight-") as folder:
        preprocessing, _ = store_preprocessing(model, folder=Path(folder))
        if preprocessing is None:
            return None
        return load_preprocessor(preprocessing, folder=Path(folder), inputs=inputs)


def _problems_of_dataset(
    role: str, model: ModelConfig, inputs: Sequence[TensorSpec], preprocessor: Preprocessor | None
) -> list[str]:
    dataset = model.calibration if role == "calibration" else model.evaluation
    if dataset is None:
        return []
    try:
        load_dataset(dataset, inputs=inputs, preprocessor=preprocessor)
    except ConfigError as error:
        return [f"{role}: {problem}" for problem in error.problems]
    return []
