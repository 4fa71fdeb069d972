import numpy as np
import pytest

from serveprune.errors import ConfigError
from serveprune.evaluation.dataset import Dataset
from serveprune.oip.tensor import Array

PADDING = {"ids": 9, "mask": 0}


def texts(*lengths: int) -> Dataset:
    """Return a dataset whose sample i is ``lengths[i]`` times the number i."""
    samples = tuple(
        {"ids": np.full(length, index), "mask": np.ones(length, dtype=np.int64)} for index, length in enumerate(lengths)
    )
    return Dataset(samples, padding=PADDING)


def pictures(*shapes: tuple[int, ...]) -> Dataset:
    return Dataset(tuple({"x": np.full(shape, index, dtype=np.float32)} for index, shape in enumerate(shapes)))


def as_lists(dataset: Dataset, batch_size: int) -> list[list[int]]:
    return [indices.tolist() for indices, _ in dataset.batches(batch_size)]


def test_batches_are_sorted_by_length_and_padded_to_their_longest() -> None:
    batches = list(texts(3, 1, 2, 1).batches(2))

    assert [indices.tolist() for indices, _ in batches] == [[1, 3], [2, 0]]
    np.testing.assert_array_equal(batches[1][1]["ids"], [[2, 2, 9], [0, 0, 0]])
    np.testing.assert_array_equal(batches[1][1]["mask"], [[1, 1, 0], [1, 1, 1]])
    assert batches[1][1]["ids"].dtype == np.int64


def test_batches_hold_equal_shapes_only_when_nothing_says_how_to_pad() -> None:
    dataset = pictures((2, 2), (3, 2), (2, 2), (2, 2), (3, 2))

    assert as_lists(dataset, 2) == [[0, 2], [3], [1, 4]]
    assert [feeds["x"].shape for _, feeds in dataset.batches(2)] == [(2, 2, 2), (1, 2, 2), (2, 3, 2)]


def test_typical_batch_is_the_middle_one_of_the_fullest() -> None:
    indices, feeds = texts(5, 4, 3, 2, 1, 6, 7).typical_batch(2)

    # Sorted by length: [4 3] [2 1] [0 5] and the rest; the second has lengths 3 and 4.
    assert indices.tolist() == [2, 1]
    assert feeds["ids"].shape == (2, 4)


def test_typical_batch_is_smaller_when_no_batch_is_full() -> None:
    assert len(pictures((2,), (3,), (3,)).typical_batch(8)[0]) == 2


def labelled(count: int) -> Dataset:
    return Dataset(
        tuple({"x": np.array([index])} for index in range(count)),
        labels=np.arange(count) * 10,
        pairs=((0, 1, 0.5), (1, count - 1, 0.7)),
    )


def values(dataset: Dataset) -> list[int]:
    return [int(sample["x"][0]) for sample in dataset.samples]


def test_head_keeps_labels_and_the_pairs_that_are_whole() -> None:
    head = labelled(5).head(3)

    assert values(head) == [0, 1, 2]
    assert isinstance(head.labels, np.ndarray)
    assert head.labels.tolist() == [0, 10, 20]
    assert head.pairs == ((0, 1, 0.5),)
    assert len(labelled(5).head(100)) == 5


def test_select_renumbers_pairs() -> None:
    assert labelled(4).select([3, 1]).pairs == ((1, 0, 0.7),)


def test_split_gives_two_disjoint_parts_that_are_always_the_same() -> None:
    first, second = labelled(100).split(0.25)

    assert (len(first), len(second)) == (25, 75)
    assert sorted(values(first) + values(second)) == list(range(100))
    assert values(first) == values(labelled(100).split(0.25)[0])
    # At random: neither the head nor every fourth sample.
    assert values(first) not in (list(range(25)), list(range(0, 100, 4)))


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.999, 1.0])
def test_split_leaves_no_part_empty(fraction: float) -> None:
    assert min(map(len, labelled(10).split(fraction))) == 1


def test_split_puts_equal_samples_into_one_part() -> None:
    twice = Dataset(tuple({"x": np.array([index % 10])} for index in range(20)))

    first, second = twice.split(0.5)

    assert (len(set(values(first))), len(set(values(second)))) == (5, 5)
    assert not set(values(first)) & set(values(second))


def test_split_is_refused_when_there_is_one_sample() -> None:
    with pytest.raises(ConfigError, match="at least 2 different samples to split, got 1"):
        pictures((1,)).split(0.5)


def test_every_sample_occurs_once_whatever_the_batch_size() -> None:
    dataset = texts(*(1 + index * 7 % 5 for index in range(23)))

    for batch_size in (1, 2, 7, 23, 100):
        parts: list[Array] = [indices for indices, _ in dataset.batches(batch_size)]
        assert sorted(np.concatenate(parts).tolist()) == list(range(23))
        assert max(map(len, parts)) <= batch_size
