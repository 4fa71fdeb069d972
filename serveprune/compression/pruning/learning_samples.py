"""What a pass learns from: the model's calibration set, or made-up inputs where those were asked for."""

from pathlib import Path

import numpy as np

from serveprune.compression.held_out import learned_part
from serveprune.config.pruning import PruneOptions
from serveprune.config.sparsity import WeightPruneOptions
from serveprune.errors import InvalidArgument
from serveprune.evaluation.dataset import Dataset
from serveprune.graph.onnx_file import read_header
from serveprune.graph.onnx_source import probe_inputs
from serveprune.graph.probe import AXIS_SIZES, generate_feeds
from serveprune.oip.tensor import Array


def learned_from(calibration: Dataset | None) -> str:
    """Return what `learning_samples` takes, in words."""
    return "synthetic inputs" if calibration is None else "calibration set"


def noise_warnings(calibration: Dataset | None, options: PruneOptions | WeightPruneOptions) -> tuple[str, ...]:
    """Return what to tell people about samples that nobody gave."""
    if calibration is not None:
        return ()
    warning = (
        f"learned from {options.synthetic_samples} made-up inputs (synthetic_samples), as there is no calibration set: "
        "expect less, and give samples"
    )
    return (warning,)


def learning_samples(
    calibration: Dataset | None, options: PruneOptions | WeightPruneOptions, *, graph: Path, seed: int
) -> Dataset:
    """Return the samples to learn from.

    Raises:
        InvalidArgument: There is no calibration set, and no made-up inputs were asked for.
    """
    if calibration is not None:
        part = learned_part(calibration)
        count = min(options.samples, len(part))
        return part.select(np.linspace(0, len(part) - 1, count).round().astype(int).tolist())
    if options.synthetic_samples is None:
        raise InvalidArgument(
            "prune: expected unlabelled samples to learn from, got none; set models.<name>.calibration.file (for the "
            "command line: --calibration), or synthetic_samples in the pass, which learns from noise"
        )
    inputs = probe_inputs(read_header(graph), label=graph.name)
    rows: list[dict[str, Array]] = []
    while (missing := options.synthetic_samples - len(rows)) > 0:
        # A graph whose batch axis is fixed gets no more rows at a time than it takes.
        feeds = generate_feeds(inputs, batch=missing, size=AXIS_SIZES[0][1], seed=seed + len(rows))
        made = min(missing, *(len(array) for array in feeds.values()))
        rows += [{name: array[index] for name, array in feeds.items()} for index in range(made)]
    return Dataset(tuple(rows))
