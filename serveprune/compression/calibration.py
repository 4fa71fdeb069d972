"""Which samples a build learns from and which it is judged on."""

from collections.abc import Sequence
from dataclasses import dataclass

from serveprune.artifacts.store import Artifact
from serveprune.config.model import ModelConfig
from serveprune.errors import InvalidArgument
from serveprune.evaluation.dataset import Dataset, load_dataset
from serveprune.evaluation.task import Task, infer_task
from serveprune.oip.tensor import TensorSpec
from serveprune.preprocessing.loading import load_preprocessor
from serveprune.preprocessing.protocol import Preprocessor

_CALIBRATION_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class BuildSamples:
    """The samples of one build; none is both learnt from and judged on.

    Attributes:
        calibration: What passes learn from; None when the model declares no calibration set.
        evaluation: What the tier is judged on.
        evaluation_set: Where ``evaluation`` comes from, for the manifest.
    """

    calibration: Dataset | None
    evaluation: Dataset
    evaluation_set: str


def samples_of(dense: Artifact, model: ModelConfig) -> BuildSamples:
    """Load the model's calibration and evaluation sets for its imported graph; see `load_samples`."""
    inputs = tuple(record.spec for record in dense.manifest.graph.inputs)
    declared = dense.manifest.preprocessing
    preprocessor = load_preprocessor(declared, folder=dense.folder, inputs=inputs) if declared else None
    return load_samples(model, inputs=inputs, preprocessor=preprocessor)


def task_of(dense: Artifact, model: ModelConfig, samples: BuildSamples) -> Task:
    """Return what the answers of a model mean, judged by its imported graph."""
    outputs = [record.spec for record in dense.manifest.graph.outputs]
    return infer_task(model, outputs, labelled=samples.evaluation.labels is not None)


def load_samples(
    model: ModelConfig, *, inputs: Sequence[TensorSpec], preprocessor: Preprocessor | None
) -> BuildSamples:
    """Load the model's calibration and evaluation sets.

    What is in both is judged on and not learnt from. Without an evaluation file a quarter of the calibration set
    is held out for it.

    Raises:
        InvalidArgument: There is neither, or too little to hold anything out, or all of one set is in the other.
        ConfigError: A file does not fit the graph; every problem is listed.
    """
    if model.calibration is None and model.evaluation is None:
        raise InvalidArgument(
            "a tier cannot be judged without inputs: set models.<name>.evaluation.file, or calibration.file of which "
            "a quarter is then held out (for the command line: --evaluation, --calibration)"
        )
    calibration = None
    if model.calibration is not None:
        calibration = load_dataset(model.calibration, inputs=inputs, preprocessor=preprocessor)
    if model.evaluation is not None:
        evaluation = load_dataset(model.evaluation, inputs=inputs, preprocessor=preprocessor)
        return _apart(calibration, evaluation, model)
    assert calibration is not None
    assert model.calibration is not None
    file = model.calibration.file
    different = len(set(calibration.digests()))
    if different < 2:
        raise InvalidArgument(
            f"{file}: expected at least 2 different samples, one of them to judge the tier on, got {different}; "
            "add samples, or set models.<name>.evaluation.file"
        )
    learnt, held_out = calibration.split(_CALIBRATION_SHARE)
    told = f"{file.name}: {len(held_out)} of its {len(calibration)} samples, held out (no evaluation file is set)"
    return BuildSamples(learnt, held_out, told)


def _apart(calibration: Dataset | None, evaluation: Dataset, model: ModelConfig) -> BuildSamples:
    """Leave out of the calibration set what the tier is judged on."""
    assert model.evaluation is not None
    told = model.evaluation.file.name
    if calibration is None:
        return BuildSamples(None, evaluation, told)
    judged = set(evaluation.digests())
    own = [index for index, digest in enumerate(calibration.digests()) if digest not in judged]
    shared = len(calibration) - len(own)
    if not shared:
        return BuildSamples(calibration, evaluation, told)
    assert model.calibration is not None
    name = model.calibration.file.name
    if not own:
        raise InvalidArgument(
            f"expected calibration samples that the tier is not judged on, but all {len(calibration)} of {name} are "
            f"also in {told}; give another file, or leave evaluation.file out, and a quarter of the "
            "calibration set is held out"
        )
    told += f" ({shared} of the {len(calibration)} samples of {name} are in it too, and were not learnt from)"
    return BuildSamples(calibration.select(own), evaluation, told)
