import math

import numpy as np
import pytest

from serveprune.evaluation.live_agreement import live_agreements, live_task
from serveprune.evaluation.task import Task
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array, TensorSpec

SCORES = TensorSpec("logits", Datatype.FP32, (-1, 3))
TOKENS = TensorSpec("states", Datatype.FP32, (-1, -1, 4))


def agreements(task: Task, served: Array, shadow: Array, *, spec: TensorSpec = SCORES) -> list[float]:
    return live_agreements(task, (spec,), {spec.name: served}, {spec.name: shadow})


def test_classifiers_agree_where_the_highest_score_is_at_the_same_class() -> None:
    served = np.array([[0, 1, 2], [3, 1, 2], [0, 5, 1]], np.float32)
    shadow = np.array([[0, 1, 9], [1, 3, 2], [0, 1, 0]], np.float32)
    assert agreements(Task.CLASSIFICATION, served, shadow) == [1.0, 0.0, 1.0]


def test_embeddings_agree_by_their_angle() -> None:
    served, shadow = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0]], float), np.array([[2, 0, 0], [1, 1, 0], [-1, 0, 0]])
    assert agreements(Task.EMBEDDING, served, shadow) == pytest.approx([1.0, math.sqrt(0.5), 0.0])


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.EMBEDDING])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_answers_that_hold_no_number_agree_with_nothing(task: Task, bad: float) -> None:
    good, broken = np.ones((1, 3)), np.array([[1.0, bad, 1.0]])
    assert agreements(task, good, broken) == agreements(task, broken, good) == agreements(task, broken, broken) == [0]


def test_generic_models_are_compared_row_by_row_whatever_their_shape() -> None:
    served = np.ones((2, 5, 4), np.float32)
    shadow = served * np.array([1, -1], np.float32).reshape(2, 1, 1)
    assert agreements(Task.GENERIC, served, shadow, spec=TOKENS) == pytest.approx([1.0, 0.0])


def test_lowest_of_several_outputs_counts() -> None:
    specs = (TOKENS, TensorSpec("more", Datatype.FP32, (-1, 2)))
    served = {"states": np.ones((1, 2, 4)), "more": np.array([[1.0, 0.0]])}
    shadow = {"states": np.ones((1, 2, 4)), "more": np.array([[0.0, 1.0]])}
    assert live_agreements(Task.GENERIC, specs, served, shadow) == [0.0]


@pytest.mark.parametrize("other", [{}, {"logits": np.ones((1, 4))}, {"logits": np.ones(())}])
def test_nothing_is_compared_where_an_output_is_missing_or_of_another_shape(other: dict[str, Array]) -> None:
    assert live_agreements(Task.CLASSIFICATION, (SCORES,), {"logits": np.ones((1, 3))}, other) == []


def test_task_is_that_of_the_metric_of_the_build() -> None:
    assert live_task("top1_agreement", (SCORES,)) is Task.CLASSIFICATION
    assert live_task("cosine", (TensorSpec("embedding", Datatype.FP32, (-1, 8)),)) is Task.EMBEDDING
    assert live_task("cosine", (TOKENS,)) is Task.GENERIC
