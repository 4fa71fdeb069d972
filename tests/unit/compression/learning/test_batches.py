import itertools

import numpy as np

from serveprune.compression.learning.batches import ShuffledBatches
from serveprune.evaluation.dataset import Dataset


def texts(lengths: list[int]) -> Dataset:
    samples = tuple({"ids": np.full(length, index, np.int64)} for index, length in enumerate(lengths))
    return Dataset(samples, padding={"ids": -1})


def test_epoch_holds_every_sample_once_in_batches_of_nearly_equal_size() -> None:
    batches = ShuffledBatches(texts([3] * 10), batch_size=4, seed=0)
    epoch = batches.indices(0)
    assert batches.steps_per_epoch == len(epoch) == 3
    assert sorted(np.concatenate(epoch).tolist()) == list(range(10))
    assert sorted(map(len, epoch)) == [3, 3, 4]


def test_order_differs_between_epochs_and_seeds_and_is_the_same_again() -> None:
    batches, other = (ShuffledBatches(texts([3] * 40), batch_size=4, seed=seed) for seed in (0, 1))

    def order(found: ShuffledBatches, epoch: int) -> list[int]:
        return [int(index) for batch in found.indices(epoch) for index in batch]

    assert order(batches, 0) == order(batches, 0)
    assert order(batches, 0) != order(batches, 1)
    assert order(batches, 0) != order(other, 0)


def test_stream_goes_on_where_an_earlier_one_was_when_begun_at_a_step() -> None:
    batches = ShuffledBatches(texts([2] * 7), batch_size=2, seed=3)
    whole = [batch.indices.tolist() for batch in itertools.islice(batches.from_step(0), 10)]
    late = [batch.indices.tolist() for batch in itertools.islice(batches.from_step(6), 4)]
    assert late == whole[6:]


def test_batches_hold_texts_of_about_one_length_and_pad_them_as_the_set_says() -> None:
    batches = ShuffledBatches(texts([4] * 16 + [40] * 16), batch_size=8, seed=0)
    for batch in itertools.islice(batches.from_step(0), 4):
        assert batch.feeds["ids"].shape[1] in (4, 40)
        assert (batch.feeds["ids"] == -1).sum() == 0
    (mixed,) = itertools.islice(ShuffledBatches(texts([2, 5]), batch_size=2, seed=0).from_step(0), 1)
    shorter = mixed.feeds["ids"][mixed.indices.tolist().index(0)]
    assert shorter.tolist() == [0, 0, -1, -1, -1]


def test_samples_of_different_shapes_never_share_a_batch() -> None:
    samples = tuple({"x": np.zeros((index % 2 + 1, 2), np.float32)} for index in range(12))
    batches = ShuffledBatches(Dataset(samples), batch_size=4, seed=0)
    assert batches.steps_per_epoch == 4
    for batch in itertools.islice(batches.from_step(0), 4):
        assert len({int(index) % 2 for index in batch.indices}) == 1
