import json
from collections.abc import Callable

import numpy as np
import pytest

from serveprune.artifacts.manifest import Measurements
from serveprune.config.profile import GateConfig
from serveprune.errors import FailedPrecondition
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.gate import judge
from serveprune.evaluation.measure import measure
from serveprune.evaluation.quality import SQNR_CAP_DB
from serveprune.evaluation.report import bytes_text, measurement_rows
from serveprune.evaluation.runnable_graph import RunnableGraph
from serveprune.evaluation.task import Task
from serveprune.oip.tensor import Array

from .conftest import Load
from .graphs import dynamic_linear, linear, logarithm

WEIGHT = np.random.default_rng(1).standard_normal((16, 5))
ROWS = np.random.default_rng(2).standard_normal((30, 16))


def vectors(rows: Array, *, labels: Array | None = None) -> Dataset:
    return Dataset(tuple({"x": row.astype(np.float32)} for row in rows), labels=labels)


def measured(
    dense: RunnableGraph,
    tier: RunnableGraph,
    dataset: Dataset,
    *,
    task: Task = Task.CLASSIFICATION,
    on_progress: Callable[[str, float], None] = lambda stage, fraction: None,
) -> Measurements:
    return measure(
        dense,
        tier,
        dataset,
        task=task,
        threads=1,
        dense_bytes=4000,
        tier_bytes=1000,
        evaluation_set="30 random rows",
        on_progress=on_progress,
        latency_budget_seconds=0.2,
    )


@pytest.mark.parametrize("task", list(Task))
def test_measurements_are_perfect_when_dense_is_measured_against_itself(task: Task, load: Load) -> None:
    result = measured(load(linear(WEIGHT)), load(linear(WEIGHT)), vectors(ROWS), task=task)

    assert result.metric == task.headline_metric
    assert result.headline_quality == 1.0
    assert result.quality["sqnr_db"] == SQNR_CAP_DB
    assert result.batch_deviation < 1e-6
    assert result.samples == 30
    assert (result.dense_bytes, result.tier_bytes) == (4000, 1000)
    assert result.evaluation_set == "30 random rows"


def test_measurements_show_what_quantization_costs(load: Load) -> None:
    labels = (ROWS @ WEIGHT).argmax(axis=1)

    result = measured(load(linear(WEIGHT)), load(dynamic_linear(WEIGHT)), vectors(ROWS, labels=labels))

    assert result.dense_quality == {"accuracy": 1.0}
    assert 0.8 <= result.quality["accuracy"] == result.quality["top1_agreement"]
    assert 30 < result.quality["sqnr_db"] < 60
    assert result.batch_deviation > 1e-4
    assert result.latency.batch_size == 8
    assert result.latency.dense_ms > 0
    assert result.latency.tier_ms > 0
    assert result.latency.rounds >= 10


def test_manifest_stays_valid_json_when_the_tier_gives_nan(load: Load) -> None:
    positive = np.abs(ROWS[:, :4]) + 0.1
    positive[7] *= -1

    result = measured(load(linear(np.eye(4))), load(logarithm()), vectors(positive))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    restored = Measurements.model_validate(json.loads(result.model_dump_json(), parse_constant=refuse))
    assert restored == result
    assert "1 of 30 samples are answered with NaN or infinity" in judge(restored, GateConfig())


def test_rows_are_measured_one_by_one_when_the_graph_takes_only_one(load: Load) -> None:
    session = load(linear(WEIGHT, batch=1))

    result = measured(session, session, vectors(ROWS))

    assert result.headline_quality == 1.0
    assert result.batch_deviation == 0.0
    assert result.latency.batch_size == 1


def test_measuring_is_refused_when_the_batch_axis_is_fixed(load: Load) -> None:
    session = load(linear(WEIGHT, batch=4))

    with pytest.raises(FailedPrecondition, match=r"dynamic batch axis, got one fixed at \[4\]"):
        measured(session, session, vectors(ROWS))


def test_one_sample_can_be_measured(load: Load) -> None:
    for task in Task:
        result = measured(load(linear(WEIGHT)), load(linear(WEIGHT)), vectors(ROWS[:1]), task=task)
        assert result.headline_quality == 1.0
        assert result.latency.batch_size == 1


def test_progress_names_the_stages_in_order(load: Load) -> None:
    seen: list[tuple[str, float]] = []

    measured(
        load(linear(WEIGHT)),
        load(linear(WEIGHT)),
        vectors(ROWS),
        on_progress=lambda stage, fraction: seen.append((stage, fraction)),
    )

    assert list(dict(seen)) == ["quality", "batch deviation", "latency"]
    assert seen[-1] == ("latency", 1.0)


def test_rows_of_the_table_say_every_figure(load: Load) -> None:
    labels = (ROWS @ WEIGHT).argmax(axis=1)
    result = measured(load(linear(WEIGHT)), load(linear(WEIGHT)), vectors(ROWS, labels=labels))
    latency = result.latency.model_copy(
        update={
            "dense_ms": 20.0,
            "tier_ms": 8.0,
            "ratio": 0.4,
            "ratio_low": 0.32,
            "ratio_high": 0.5,
            "rounds": 60,
        }
    )

    rows = measurement_rows(result.model_copy(update={"latency": latency, "batch_deviation": 0.0123}))

    assert rows == (
        ("backend", "onnxruntime"),
        ("top1 agreement", "1.0000"),
        ("SQNR", "200.0 dB"),
        ("accuracy", "1.0000 (dense 1.0000)"),
        ("batch deviation", "0.012"),
        ("latency", "8 ms (dense 20 ms; batch of 8, 1 thread, 60 rounds)"),
        ("speedup", "2.50x (2.00x to 3.12x)"),
        ("size", "1000 B (dense 3.9 KiB; 4.00x smaller)"),
        ("measured on", "30 samples: 30 random rows"),
    )


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (23_068_672, "22.0 MiB"), (5 * 2**30, "5.00 GiB")],
)
def test_bytes_are_given_in_binary_units(size: int, text: str) -> None:
    assert bytes_text(size) == text
