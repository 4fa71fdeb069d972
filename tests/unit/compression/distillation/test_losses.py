import math

import numpy as np
import pytest
import torch

from serveprune.compression.distillation.losses import (
    are_probabilities,
    class_divergence,
    cosine_distance,
    logits,
    masked_mean,
    squared_error,
)


def test_divergence_is_that_of_the_softened_classes_worked_by_hand() -> None:
    # Temperature 2 makes of the logits (0, 2 ln 3) the classes (1/4, 3/4), and of (0, 0) the classes (1/2, 1/2).
    teacher, student = torch.tensor([[0.0, 2 * math.log(3)]]), torch.zeros(1, 2)
    by_hand = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert float(class_divergence(student, teacher, temperature=2.0)) == pytest.approx(4 * by_hand, rel=1e-5)
    assert float(class_divergence(teacher, teacher + 3, temperature=2.0)) == pytest.approx(0, abs=1e-6)


def test_distance_and_error_agree_with_numpy() -> None:
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 5, 7)).astype(np.float32)
    cosines = (student * teacher).sum(1) / np.linalg.norm(student, axis=1) / np.linalg.norm(teacher, axis=1)
    pair = torch.from_numpy(student), torch.from_numpy(teacher)
    assert float(cosine_distance(*pair)) == pytest.approx(1 - cosines.mean(), rel=1e-5)
    assert float(squared_error(*pair)) == pytest.approx(((student - teacher) ** 2).mean(), rel=1e-5)


def test_padding_counts_nothing() -> None:
    generator = np.random.default_rng(1)
    student, teacher = torch.from_numpy(generator.normal(size=(2, 3, 4, 5)).astype(np.float32))
    mask = torch.tensor([[True, True, False, False], [True] * 4, [True, False, False, False]])
    real = [(student[row, :length], teacher[row, :length]) for row, length in enumerate((2, 4, 1))]
    joined = torch.cat([one for one, _ in real]), torch.cat([other for _, other in real])
    for loss in (squared_error, cosine_distance):
        assert float(loss(student, teacher, mask=mask)) == pytest.approx(float(loss(*joined)), rel=1e-5)
    spoiled = torch.where(mask.unsqueeze(-1), student, torch.tensor(1e9))
    assert float(squared_error(spoiled, teacher, mask=mask)) == pytest.approx(float(squared_error(*joined)), rel=1e-5)
    assert float(masked_mean(torch.ones(3, 4, 5, 2), mask)) == pytest.approx(1)


def test_probabilities_are_told_from_scores_and_turned_into_scores_that_mean_the_same() -> None:
    scores = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, 0.1]])
    assert are_probabilities(scores.softmax(-1))
    assert not are_probabilities(scores)
    assert not are_probabilities(scores.log_softmax(-1))
    again = logits(scores.softmax(-1), are_probabilities=True)
    assert torch.allclose(again.softmax(-1), scores.softmax(-1), atol=1e-6)
    assert torch.equal(logits(scores, are_probabilities=False), scores)
