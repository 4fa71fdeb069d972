"""The batch whose latency a target speaks of."""

import numpy as np

from serveprune.config.pruning import WorkloadOptions
from serveprune.evaluation.dataset import Dataset
from serveprune.oip.tensor import Array


def workload_feeds(samples: Dataset, workload: WorkloadOptions) -> dict[str, Array]:
    """Return one batch of samples, stretched to the workload's length where samples have one.

    Samples are repeated where there are fewer than the batch has rows.
    """
    batch_size = min(workload.batch_size, samples.most_rows or workload.batch_size)
    if workload.length is None or not samples.padding:
        _, feeds = samples.typical_batch(min(batch_size, len(samples)))
        return {name: np.resize(array, (batch_size, *array.shape[1:])) for name, array in feeds.items()}
    rows = [samples.samples[index % len(samples)] for index in range(batch_size)]
    # Real tokens, repeated to the wanted length: latency does not depend on which they are.
    stretched = [
        {
            name: np.resize(array, (workload.length, *array.shape[1:])) if name in samples.padding else array
            for name, array in row.items()
        }
        for row in rows
    ]
    return {name: np.stack([row[name] for row in stretched]) for name in stretched[0]}
