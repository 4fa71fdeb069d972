import numpy as np
import pytest

from serveprune.compression.held_out import learned_part, parted
from serveprune.errors import ConfigError
from serveprune.evaluation.dataset import Dataset


def numbered(count: int) -> Dataset:
    return Dataset(tuple({"x": np.array([index], np.float32)} for index in range(count)))


def numbers(dataset: Dataset) -> set[int]:
    return {int(sample["x"][0]) for sample in dataset.samples}


def test_what_judges_is_never_learned_from_by_the_passes_before() -> None:
    dataset = numbered(200)
    learned, judges = parted(dataset, ratio=0.1)
    assert (len(learned), len(judges)) == (180, 20)
    assert numbers(learned_part(dataset)) == numbers(learned)
    # A smaller ratio takes some of the same.
    assert numbers(parted(dataset, ratio=0.05)[1]) < numbers(judges)


def test_no_more_than_512_samples_judge() -> None:
    assert len(parted(numbered(8000), ratio=0.2)[1]) == 512


def test_small_sets_are_learned_from_whole() -> None:
    assert len(learned_part(numbered(127))) == 127
    assert len(learned_part(numbered(128))) == 115


def test_one_sample_cannot_be_parted() -> None:
    with pytest.raises(ConfigError, match="at least 2 different samples"):
        parted(numbered(1), ratio=0.1)
