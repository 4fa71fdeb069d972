"""The batch whose latency a target speaks of."""

import numpy as np

from serveprune.config.pruning import WorkloadOptions
from serveprune.evaluation.dataset import Dataset
from serveprune.oip.tensor import Array


def workload_feeds(samples: Dataset, workload: WorkloadOptions) -> dict[str, Array]:
    """Return one batch of samples, stretched to the workload's length where samples have one."""
    if workload.length is None or not samples.padding:
        return dict(samples.typical_batch(min(workload.batch_size, len(samples)))[1])
    rows = [samples.samples[index % len(samples)] for index in range(workload.batch_size)]
    # Real tokens, repeated to the wanted length: latency does not depend on which they are.
    stretched = [
        {
            name: np.resize(array, (workload.length, *array.shape[1:])) if name in samples.padding else array
            for name, array in row.items()
        }
        for row in rows
    ]
    return {name: np.stack([row[name] for row in stretched]) for name in stretched[0]}
