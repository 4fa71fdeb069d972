from collections.abc import Sequence
from pathlib import Path

from serveprune.config.model import Preprocessing, TextPreprocessing
from serveprune.errors import ConfigError
from serveprune.oip.tensor import TensorSpec
from serveprune.preprocessing.image import ImagePreprocessor
from serveprune.preprocessing.protocol import Preprocessor
from serveprune.preprocessing.text import TextPreprocessor


def load_preprocessor(config: Preprocessing, *, folder: Path, inputs: Sequence[TensorSpec]) -> Preprocessor:
    """Load what the config declares and check it against the graph's inputs.

    Args:
        config: Text or image preprocessing.
        folder: Relative paths in the config are relative to it.
        inputs: All inputs of the graph.

    Raises:
        ConfigError: A file is missing or broken, or the graph does not take what the preprocessing makes.
    """
    if any(spec.name == config.input for spec in inputs):
        problem = (
            f"preprocessing.input: expected a name no graph input has, got {config.input!r}; clients could not tell "
            "the two apart"
        )
        raise ConfigError([problem])
    if isinstance(config, TextPreprocessing):
        return TextPreprocessor(config, folder=folder, inputs=inputs)
    return ImagePreprocessor(config, inputs=inputs)
