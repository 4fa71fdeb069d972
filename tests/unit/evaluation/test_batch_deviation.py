import numpy as np
import pytest

from serveprune.evaluation.batch_deviation import SAMPLES, batch_deviation
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.runnable_graph import RunnableGraph
from serveprune.evaluation.task import Task
from serveprune.oip.tensor import Array

from .conftest import Load
from .graphs import dynamic_linear, graph, linear, logarithm, node, token_vectors

WEIGHT = np.random.default_rng(1).standard_normal((16, 5))


def vectors(rows: Array) -> Dataset:
    return Dataset(tuple({"x": row.astype(np.float32)} for row in rows))


def rows_of_different_size(count: int, *, width: int = 16) -> Array:
    """Return rows whose magnitudes spread over two decades, so that neighbours coarsen a shared scale."""
    randomness = np.random.default_rng(2)
    rows: Array = randomness.standard_normal((count, width)) * np.geomspace(0.1, 10, count)[:, None]
    return rows


def measured(session: RunnableGraph, dataset: Dataset, task: Task, *, batch_size: int = 8) -> float:
    return batch_deviation(session, dataset, task=task, outputs=session.outputs, batch_size=batch_size)


@pytest.mark.parametrize("task", list(Task))
def test_deviation_is_nothing_when_the_graph_is_float(task: Task, load: Load) -> None:
    assert measured(load(linear(WEIGHT)), vectors(rows_of_different_size(40)), task) < 1e-6


@pytest.mark.parametrize("task", list(Task))
def test_deviation_is_seen_when_scales_are_taken_over_the_batch(task: Task, load: Load) -> None:
    assert measured(load(dynamic_linear(WEIGHT)), vectors(rows_of_different_size(40)), task) > 0.02


def test_deviation_of_two_rows_is_what_it_is_by_hand(load: Load) -> None:
    # Alone, the scale is 1 / 255 and nothing is lost. Beside 255 the scale is 1, so 0.4 becomes 0 and 1 stays 1.
    dataset = vectors(np.array([[1.0, 0.4], [255.0, 0.0]]))
    session = load(dynamic_linear(np.eye(2)))

    classes = measured(session, dataset, Task.CLASSIFICATION)
    cosines = measured(session, dataset, Task.EMBEDDING)

    assert classes == pytest.approx(1 / (1 + np.exp(-1)) - 1 / (1 + np.exp(-0.6)), abs=1e-4)
    assert cosines == pytest.approx(1 - 1 / np.sqrt(1 + 0.4**2), abs=1e-4)


def test_probabilities_are_compared_as_they_are(load: Load) -> None:
    # As above, but the graph answers with the numbers themselves, which sum to 1.
    dataset = vectors(np.array([[0.6, 0.4], [1.0, 0.0]]))
    session = load(
        graph(
            [
                node("ReduceMax", "x", "largest", keepdims=0),
                node("Mul", "largest half", "offset"),
                node("Mul", "offset signs", "shift"),
                node("Add", "x shift", "probabilities"),
            ],
            inputs={"x": ("batch", 2)},
            outputs={"probabilities": ("batch", 2)},
            weights={"half": np.float32(0.1) * np.ones(1, np.float32), "signs": np.array([-1, 1], dtype=np.float32)},
        )
    )

    # The largest value of the batch moves every row: 0.06 alone, 0.1 beside the other.
    assert measured(session, dataset, Task.CLASSIFICATION) == pytest.approx(0.04, abs=1e-6)


def test_one_number_per_row_is_compared_by_size(load: Load) -> None:
    session = load(dynamic_linear(np.array([[1.0], [1.0]]), output="score"))

    result = measured(session, vectors(np.array([[1.0, 0.4], [255.0, 0.0]])), Task.GENERIC)

    # 1.4 alone, 1 beside the other; 255 is the largest answer.
    assert result == pytest.approx(0.4 / 255, rel=1e-2)


def test_padding_counts_when_neighbours_are_longer(load: Load) -> None:
    # A mean over all positions, padding included: what a client of the shorter text sees is moved by the longer one.
    table = np.array([[1, 0], [1, 0], [0, 1]])
    naive = load(
        graph(
            [node("Gather", "table input_ids", "tokens"), node("ReduceMean", "tokens middle", "embedding", keepdims=0)],
            inputs={"input_ids": ("batch", "sequence")},
            outputs={"embedding": ("batch", 2)},
            weights={"table": table.astype(np.float32), "middle": np.array([1])},
            input_type=7,
        )
    )
    dataset = Dataset(({"input_ids": np.array([0])}, {"input_ids": np.array([0, 1])}), padding={"input_ids": 2})

    # (1, 0) alone, (1/2, 1/2) padded to two tokens.
    assert measured(naive, dataset, Task.EMBEDDING) == pytest.approx(1 - np.sqrt(1 / 2), abs=1e-6)


def test_neighbours_count_apart_from_padding_when_padding_hides_them(load: Load) -> None:
    # Answers (1, padded tokens of the batch / rows^8): a text alone has no padding, and in a batch there are
    # many rows, so a client sees next to nothing; beside equal padding the rows make all the difference.
    session = load(
        graph(
            [
                node("Equal", "input_ids padding", "is_padding"),
                node("Cast", "is_padding", "padded", to=1),
                node("ReduceSum", "padded", "total", keepdims=0),
                node("ReduceSum", "padded middle", "own", keepdims=1),
                node("Shape", "own", "sizes"),
                node("Cast", "sizes", "float_sizes", to=1),
                node("ReduceProd", "float_sizes", "rows", keepdims=0),
                node("Pow", "rows eight", "weight"),
                node("Div", "total weight", "share"),
                node("Mul", "own zero", "nothing"),
                node("Add", "nothing share", "second"),
                node("Add", "nothing one", "first"),
                node("Concat", "first second", "embedding", axis=1),
            ],
            inputs={"input_ids": ("batch", "sequence")},
            outputs={"embedding": ("batch", 2)},
            weights={
                "padding": np.array(9),
                "middle": np.array([1]),
                "eight": np.array(8, np.float32),
                "zero": np.array(0, np.float32),
                "one": np.array(1, np.float32),
            },
            input_type=7,
        )
    )
    dataset = Dataset(tuple({"input_ids": np.zeros(length, np.int64)} for length in (1, 2)), padding={"input_ids": 9})

    # Alone (1, 1) where one token is padded; (1, 1 / 256) beside the other.
    assert measured(session, dataset, Task.EMBEDDING) == pytest.approx(1 - np.sqrt(1 / 2), abs=5e-3)


def test_masked_sequences_and_token_outputs_do_not_deviate_in_float(load: Load) -> None:
    session = load(token_vectors(np.random.default_rng(4).standard_normal((10, 6)), outputs=("tokens", "embedding")))
    samples = tuple(
        {"input_ids": np.arange(length) % 9, "attention_mask": np.ones(length, dtype=np.int64)}
        for length in (1, 2, 3, 5, 7, 9, 12, 12)
    )
    dataset = Dataset(samples, padding={"input_ids": 9, "attention_mask": 0})

    for task in (Task.EMBEDDING, Task.GENERIC):
        result = measured(session, dataset, task, batch_size=2)
        assert result < 1e-6


def test_deviation_is_the_largest_possible_when_answers_are_nan(load: Load) -> None:
    dataset = vectors(np.array([[1, 1, 1, 1], [-1, 1, 1, 1]]))

    assert measured(load(logarithm()), dataset, Task.CLASSIFICATION) == 1.0
    assert measured(load(logarithm()), dataset, Task.EMBEDDING) == 2.0


def test_nothing_is_compared_when_no_samples_can_share_a_batch(load: Load) -> None:
    session = load(linear(WEIGHT))

    assert measured(session, vectors(rows_of_different_size(1)), Task.GENERIC) == 0.0


def test_samples_are_bounded_and_spread_over_the_dataset(load: Load) -> None:
    # Only the last row is large enough to disturb its neighbours.
    rows = np.tile(np.linspace(0.1, 1, 16), (SAMPLES * 5, 1))
    rows[-1] *= 100

    result = measured(load(dynamic_linear(WEIGHT)), vectors(rows), Task.EMBEDDING)

    assert result > 1e-3


def test_deviation_is_the_same_every_time(load: Load) -> None:
    session, dataset = load(dynamic_linear(WEIGHT)), vectors(rows_of_different_size(30))

    assert measured(session, dataset, Task.EMBEDDING) == measured(session, dataset, Task.EMBEDDING)
