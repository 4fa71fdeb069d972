"""What a pass learns from: the model's calibration set, or made-up inputs where those were asked for."""

from pathlib import Path

from serveprune.config.pruning import PruneOptions
from serveprune.errors import InvalidArgument
from serveprune.evaluation.dataset import Dataset
from serveprune.graph.onnx_file import read_header
from serveprune.graph.onnx_source import probe_inputs
from serveprune.graph.probe import AXIS_SIZES, generate_feeds


def learning_samples(calibration: Dataset | None, options: PruneOptions, *, graph: Path, seed: int) -> Dataset:
    """Return the samples to learn from.

    Raises:
        InvalidArgument: There is no calibration set, and no made-up inputs were asked for.
    """
    if calibration is not None:
        return calibration
    if options.synthetic_samples is None:
        raise InvalidArgument(
            "prune: expected unlabelled samples to learn from, got none; set models.<name>.calibration.file (for the "
            "command line: --calibration), or synthetic_samples in the pass, which learns from noise"
        )
    inputs = probe_inputs(read_header(graph), label=graph.name)
    feeds = generate_feeds(inputs, batch=options.synthetic_samples, size=AXIS_SIZES[0][1], seed=seed)
    return Dataset(
        tuple({name: array[index] for name, array in feeds.items()} for index in range(options.synthetic_samples))
    )
