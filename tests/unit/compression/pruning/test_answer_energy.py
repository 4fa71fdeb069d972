import numpy as np
import pytest

from serveprune.compression.pruning.sensitivity import energy


def test_energy_is_about_the_mean_of_all_samples_when_each_has_a_batch_of_its_own() -> None:
    rows = np.random.default_rng(0).normal(3, 2, (40, 5)).astype(np.float32)
    expected = 40 * rows.astype(np.float64).var(axis=0).sum()
    assert energy(np.split(rows, 40)) == pytest.approx(expected)
    assert energy([rows]) == pytest.approx(expected)


def test_energy_is_about_the_mean_token_when_samples_differ_in_length() -> None:
    tokens = np.random.default_rng(0).normal(3, 2, (12, 5)).astype(np.float32)
    batches = [tokens[:4].reshape(1, 4, 5), tokens[4:].reshape(1, 8, 5)]
    assert energy(batches) == pytest.approx(12 * tokens.astype(np.float64).var(axis=0).sum())


def test_energy_is_about_one_mean_when_only_the_last_axis_grows_with_the_sample() -> None:
    scores = np.arange(12.0)
    assert energy([scores[:4].reshape(1, 4), scores[4:].reshape(1, 8)]) == pytest.approx(12 * scores.var())
