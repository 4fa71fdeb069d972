"""Which samples a build learns from and which it is judged on."""

from collections.abc import Sequence
from dataclasses import dataclass

from serveprune.config.model import ModelConfig
from serveprune.errors import InvalidArgument
from serveprune.evaluation.dataset import Dataset, load_dataset
from serveprune.oip.tensor import TensorSpec
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


def load_samples(
    model: ModelConfig, *, inputs: Sequence[TensorSpec], preprocessor: Preprocessor | None
) -> BuildSamples:
    """Load the model's calibration and evaluation sets.

    Without an evaluation file a quarter of the calibration set is held out for it.

    Raises:
        InvalidArgument: There is neither, or too little to hold anything out.
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
        return BuildSamples(calibration, evaluation, model.evaluation.file.name)
    assert calibration is not None
    assert model.calibration is not None
    file = model.calibration.file
    if len(calibration) < 2:
        raise InvalidArgument(
            f"{file}: expected at least 2 samples, one of them to judge the tier on, got {len(calibration)}; "
            "add samples, or set models.<name>.evaluation.file"
        )
    learnt, held_out = calibration.split(_CALIBRATION_SHARE)
    told = f"{file.name}: {len(held_out)} of its {len(calibration)} samples, held out (no evaluation file is set)"
    return BuildSamples(learnt, held_out, told)
