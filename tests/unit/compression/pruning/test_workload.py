import numpy as np

from serveprune.compression.pruning.workload import workload_feeds
from serveprune.config.pruning import WorkloadOptions
from serveprune.evaluation.dataset import Dataset


def test_workload_repeats_samples_when_there_are_fewer_than_the_batch_has_rows() -> None:
    rows = np.arange(12.0).reshape(3, 4).astype(np.float32)
    feeds = workload_feeds(Dataset(tuple({"x": row} for row in rows)), WorkloadOptions(batch_size=8))
    np.testing.assert_array_equal(feeds["x"], rows[[0, 1, 2, 0, 1, 2, 0, 1]])


def test_workload_stretches_tokens_to_its_length() -> None:
    tokens = ([1, 2, 3], [4, 5])
    samples = Dataset(tuple({"ids": np.array(row)} for row in tokens), padding={"ids": 0})
    feeds = workload_feeds(samples, WorkloadOptions(batch_size=3, length=5))
    assert feeds["ids"].tolist() == [[1, 2, 3, 1, 2], [4, 5, 4, 5, 4], [1, 2, 3, 1, 2]]
