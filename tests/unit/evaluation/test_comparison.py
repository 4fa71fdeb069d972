import numpy as np
import pytest

from serveprune.errors import ConfigError, FailedPrecondition
from serveprune.evaluation.comparison import Comparison, compare
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.quality import SQNR_CAP_DB
from serveprune.evaluation.runnable_graph import RunnableGraph
from serveprune.evaluation.task import Task
from serveprune.oip.tensor import Array

from .conftest import Load
from .graphs import graph, linear, logarithm, node, token_vectors

RANDOM = np.random.default_rng(0)
IDENTITY = np.eye(4, dtype=np.float32)


def vectors(rows: Array, *, labels: Array | None = None, pairs: tuple[tuple[int, int, float], ...] = ()) -> Dataset:
    return Dataset(tuple({"x": row.astype(np.float32)} for row in rows), labels=labels, pairs=pairs)


def compared(dense: RunnableGraph, tier: RunnableGraph, dataset: Dataset, task: Task) -> Comparison:
    return compare(dense, tier, dataset, task=task, batch_size=3, on_progress=lambda fraction: None)


ROWS = np.array([[4, 3, 2, 1], [1, 4, 3, 2], [2, 1, 4, 3], [3, 2, 1, 4], [4, 1, 2, 3]])


def test_classifier_is_scored_by_agreement_and_accuracy(load: Load) -> None:
    # The tier swaps the scores of classes 0 and 1: rows 0, 1 and 4 change their winner.
    swap = IDENTITY[[1, 0, 2, 3]]
    dataset = vectors(ROWS, labels=np.array([0, 0, 2, 3, 0]))

    result = compared(load(linear(IDENTITY)), load(linear(swap)), dataset, Task.CLASSIFICATION)

    assert result.quality["top1_agreement"] == pytest.approx(2 / 5)
    assert result.quality["accuracy"] == pytest.approx(3 / 5)
    assert result.dense_quality == {"accuracy": pytest.approx(4 / 5)}
    # Every row has energy 30; swapping differences of 1, 3, 1, 1, 3 has energy 2 (1 + 9 + 1 + 1 + 9).
    assert result.quality["sqnr_db"] == pytest.approx(10 * np.log10(150 / 42), abs=1e-5)
    assert next(iter(result.quality)) == "top1_agreement"


def test_embedding_is_scored_by_cosine_neighbours_and_pairs(load: Load) -> None:
    angles = np.radians([0, 10, 60, 80])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # Cosines of these pairs fall from first to last; people agree with the order.
    pairs = ((0, 1, 5.0), (0, 2, 3.0), (0, 3, 0.0))
    flatten = np.diag([1.0, 0.0])

    result = compared(
        load(linear(np.eye(2), output="embedding")),
        load(linear(flatten, output="embedding")),
        vectors(rows, pairs=pairs),
        Task.EMBEDDING,
    )

    # The tier keeps the first coordinate only, so every cosine is that of the angle to it.
    assert result.quality["cosine"] == pytest.approx(np.cos(angles).mean())
    # All tier embeddings are alike, so the first other one wins: 1, 0, 0, 0 instead of 1, 0, 3, 2.
    assert result.quality["nearest_neighbour_agreement"] == 0.5
    assert result.dense_quality["spearman"] == pytest.approx(1)
    cosines = np.cos(np.radians([10, 60, 80]))
    assert result.dense_quality["pearson"] == pytest.approx(np.corrcoef(cosines, [5, 3, 0])[0, 1])
    # A constant has no correlation.
    assert result.quality["pearson"] == 0.0


def test_generic_output_is_scored_as_one_vector_about_the_mean(load: Load) -> None:
    result = compared(
        load(linear(IDENTITY, output="y")), load(linear(np.diag([1, 1, 1, 0]), output="y")), vectors(ROWS), Task.GENERIC
    )

    dense, tier = (ROWS * kept - ROWS.mean(axis=0) for kept in (1, [1, 1, 1, 0]))
    assert result.quality["cosine"] == pytest.approx(
        (dense * tier).sum() / np.linalg.norm(dense) / np.linalg.norm(tier)
    )
    # Row 3 has its highest score where the tier gives nothing.
    assert result.quality["top1_agreement"] == pytest.approx(4 / 5)
    assert result.quality["sqnr_db"] == pytest.approx(10 * np.log10(150 / (ROWS[:, 3] ** 2).sum()), abs=1e-5)
    assert result.dense_quality == {}


def test_generic_quality_shows_disagreement_when_all_scores_share_an_offset(load: Load) -> None:
    # What 1,000 classes of a softmax-trained head look like: around -8, and half of the answers change.
    rows = RANDOM.standard_normal((300, 4)) - 8
    mixing = np.eye(4) + 0.1 * RANDOM.standard_normal((4, 4))

    result = compared(load(linear(IDENTITY, output="y")), load(linear(mixing, output="y")), vectors(rows), Task.GENERIC)

    answers = rows.astype(np.float32) @ mixing
    plain = (rows * answers).sum() / np.linalg.norm(rows) / np.linalg.norm(answers)
    assert plain > 0.97
    assert result.quality["cosine"] < 0.9
    assert result.quality["top1_agreement"] == pytest.approx((rows.argmax(axis=1) == answers.argmax(axis=1)).mean())


def test_generic_quality_leaves_the_highest_score_out_when_somebody_said_what_the_answers_are(load: Load) -> None:
    session = load(linear(IDENTITY, output="y"))

    result = compare(
        session,
        session,
        vectors(ROWS),
        task=Task.GENERIC,
        task_is_told=True,
        batch_size=3,
        on_progress=lambda fraction: None,
    )

    assert set(result.quality) == {"cosine", "sqnr_db"}


@pytest.mark.parametrize("name", ["logits", "embedding"])
def test_comparison_is_generic_when_the_width_differs_from_batch_to_batch(name: str, load: Load) -> None:
    # A score for each token, as of a span extractor.
    table = RANDOM.standard_normal((10, 1)).astype(np.float32)
    session = load(
        graph(
            [node("Gather", "table input_ids", "tokens"), node("Squeeze", "tokens last", name)],
            inputs={"input_ids": ("batch", "sequence")},
            outputs={name: ("batch", "sequence")},
            weights={"table": table, "last": np.array([2])},
            input_type=7,
        )
    )
    dataset = Dataset(
        tuple({"input_ids": np.arange(length) % 9} for length in range(2, 9)),
        labels=np.zeros(7, dtype=np.int64),
        padding={"input_ids": 9},
    )

    result = compared(session, session, dataset, Task.CLASSIFICATION if name == "logits" else Task.EMBEDDING)

    assert result.task is Task.GENERIC
    assert result.quality == {"cosine": 1.0, "top1_agreement": 1.0, "sqnr_db": SQNR_CAP_DB}
    assert result.dense_quality == {}


@pytest.mark.parametrize("task", list(Task))
def test_quality_is_perfect_when_the_graphs_are_equal(task: Task, load: Load) -> None:
    weight = RANDOM.standard_normal((4, 8))
    dataset = vectors(RANDOM.standard_normal((50, 4)))

    result = compared(load(linear(weight)), load(linear(weight)), dataset, task)

    assert result.quality.pop("sqnr_db") == SQNR_CAP_DB  # type: ignore[attr-defined]
    assert set(result.quality.values()) == {1.0}


def test_worst_output_counts_when_there_are_several(load: Load) -> None:
    def two(second: Array) -> RunnableGraph:
        return load(
            graph(
                [node("Identity", "x", "a"), node("MatMul", "x weight", "b")],
                inputs={"x": ("batch", 4)},
                outputs={"a": ("batch", 4), "b": ("batch", 4)},
                weights={"weight": second.astype(np.float32)},
            )
        )

    dataset = vectors(ROWS)
    dense, tier = ROWS - ROWS.mean(axis=0), -ROWS - ROWS.mean(axis=0)
    about_the_mean = (dense * tier).sum() / np.linalg.norm(dense) / np.linalg.norm(tier)
    for task, metric in ((Task.CLASSIFICATION, "top1_agreement"), (Task.EMBEDDING, "cosine"), (Task.GENERIC, "cosine")):
        result = compared(two(IDENTITY), two(-IDENTITY), dataset, task)
        worst = {Task.CLASSIFICATION: 0.0, Task.EMBEDDING: -1.0, Task.GENERIC: about_the_mean}[task]
        assert result.quality[metric] == pytest.approx(worst)
        assert result.quality["sqnr_db"] == pytest.approx(-20 * np.log10(2))


def test_answers_to_padding_do_not_count(load: Load) -> None:
    table = RANDOM.standard_normal((10, 3))
    other = table.copy()
    other[9] = 1e6  # only padding looks this row up
    dataset = Dataset(
        tuple(
            {"input_ids": np.arange(length), "attention_mask": np.ones(length, dtype=np.int64)} for length in (1, 4, 7)
        ),
        padding={"input_ids": 9, "attention_mask": 0},
    )

    result = compared(load(token_vectors(table)), load(token_vectors(other)), dataset, Task.GENERIC)

    assert result.quality == {"cosine": 1.0, "sqnr_db": SQNR_CAP_DB}


@pytest.mark.parametrize(
    ("task", "worst"),
    [
        (Task.CLASSIFICATION, {"top1_agreement": 0.0, "accuracy": 0.0, "sqnr_db": -SQNR_CAP_DB}),
        (
            Task.EMBEDDING,
            {
                "cosine": -1.0,
                "nearest_neighbour_agreement": 0.0,
                "pearson": -1.0,
                "spearman": -1.0,
                "sqnr_db": -SQNR_CAP_DB,
            },
        ),
        (Task.GENERIC, {"cosine": -1.0, "top1_agreement": 0.0, "sqnr_db": -SQNR_CAP_DB}),
    ],
)
def test_every_metric_is_at_its_worst_when_one_answer_is_nan(task: Task, worst: dict[str, float], load: Load) -> None:
    rows = np.array([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, -1, 6], [0, 1, 2, 3]])
    dataset = vectors(rows, labels=np.zeros(4, dtype=np.int64), pairs=((0, 1, 1.0), (1, 2, 0.0)))

    result = compared(load(linear(IDENTITY)), load(logarithm()), dataset, task)

    # Row 2 gives NaN, row 3 minus infinity.
    assert result.quality == {**worst, "finite_fraction": 0.5}
    assert all(np.isfinite(value) for value in result.dense_quality.values())


def test_comparison_is_refused_when_dense_gives_nan(load: Load) -> None:
    dataset = vectors(np.array([[1, 1, 1, 1], [-1, 1, 1, 1]]))

    with pytest.raises(FailedPrecondition, match=r"dense graph itself gives NaN or infinity for sample 1 in .*logits"):
        compared(load(logarithm()), load(logarithm()), dataset, Task.CLASSIFICATION)


def test_comparison_is_refused_when_shapes_differ(load: Load) -> None:
    with pytest.raises(FailedPrecondition, match=r"dense answers with shape \(3, 4\), the tier with \(3, 2\)"):
        compared(load(linear(IDENTITY)), load(linear(IDENTITY[:, :2])), vectors(ROWS), Task.CLASSIFICATION)


def test_comparison_is_refused_when_no_output_fits_the_task(load: Load) -> None:
    one_score = load(linear(IDENTITY[:, :1]))

    with pytest.raises(FailedPrecondition, match="no output can be scored as classification: logits"):
        compared(one_score, one_score, vectors(ROWS), Task.CLASSIFICATION)


def test_comparison_is_refused_when_a_label_is_no_class(load: Load) -> None:
    session = load(linear(IDENTITY))

    with pytest.raises(ConfigError, match="label: expected 0 to 3, the model's classes, got 4"):
        compared(session, session, vectors(ROWS, labels=np.array([0, 1, 2, 3, 4])), Task.CLASSIFICATION)


def test_progress_reaches_the_end(load: Load) -> None:
    session = load(linear(IDENTITY))
    fractions: list[float] = []

    compare(session, session, vectors(ROWS), task=Task.GENERIC, batch_size=2, on_progress=fractions.append)

    assert fractions == [0.4, 0.8, 1.0]
