import time
from collections.abc import Callable

from serveprune.artifacts.manifest import Measurements
from serveprune.evaluation.batch_deviation import batch_deviation
from serveprune.evaluation.comparison import compare
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.latency import measure_latency
from serveprune.evaluation.rows_per_run import rows_per_run
from serveprune.evaluation.runnable_graph import RunnableGraph
from serveprune.evaluation.task import Task

DEFAULT_BATCH_SIZE = 8
"""Rows that meet in a batch under moderate load, on the machines this is made for."""


def measure(
    dense: RunnableGraph,
    tier: RunnableGraph,
    dataset: Dataset,
    *,
    task: Task,
    threads: int,
    dense_bytes: int,
    tier_bytes: int,
    evaluation_set: str,
    task_is_told: bool = False,
    batch_size: int = DEFAULT_BATCH_SIZE,
    latency_budget_seconds: float = 20.0,
    on_progress: Callable[[str, float], None] = lambda stage, fraction: None,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> Measurements:
    """Measure what a tier costs in quality and gains in speed and size, against dense.

    The same dataset gives the same quality and batch deviation every time; latency is what this machine does now.

    Args:
        dense: The dense graph, loaded with ``threads``.
        tier: The tier's graph, loaded with ``threads``.
        dataset: Held out: nothing in it was used to make the tier.
        task: Decides the metrics; see `compare`.
        task_is_told: Whether somebody said so, or it was inferred.
        threads: Compute threads of both graphs, for the record.
        dense_bytes: Size of the dense graph.
        tier_bytes: Size of the tier's graph.
        evaluation_set: What the dataset is, for people.
        batch_size: Most rows in a batch, for quality, neighbours and latency.
        latency_budget_seconds: About how long timing may take.
        on_progress: Called with the stage (quality, batch deviation, latency) and its fraction done.
        clock: Seconds from any fixed moment.
        seed: Of the neighbours drawn and of the order of timing.

    Raises:
        FailedPrecondition: The graphs cannot be compared: their answers differ in shape, dense gives NaN, or the
            batch axis is fixed above 1.
        ConfigError: The dataset's labels are not the model's classes.
    """
    batch_size = rows_per_run(dense.inputs, wanted=batch_size)
    has_neighbours = batch_size > 1
    batch_size = min(batch_size, len(dataset))
    comparison = compare(
        dense,
        tier,
        dataset,
        task=task,
        batch_size=batch_size,
        on_progress=lambda fraction: on_progress("quality", fraction),
        task_is_told=task_is_told,
    )
    on_progress("batch deviation", 0.0)
    deviation = 0.0
    if has_neighbours:
        deviation = batch_deviation(
            tier, dataset, task=comparison.task, outputs=dense.outputs, batch_size=batch_size, seed=seed
        )
    on_progress("latency", 0.0)
    indices, feeds = dataset.typical_batch(batch_size)
    latency = measure_latency(
        lambda: dense.run(feeds),
        lambda: tier.run(feeds),
        batch_size=len(indices),
        threads=threads,
        budget_seconds=latency_budget_seconds,
        clock=clock,
        seed=seed,
    )
    on_progress("latency", 1.0)
    return Measurements(
        metric=comparison.task.headline_metric,
        quality=comparison.quality,
        dense_quality=comparison.dense_quality,
        batch_deviation=deviation,
        samples=len(dataset),
        evaluation_set=evaluation_set,
        latency=latency,
        dense_bytes=dense_bytes,
        tier_bytes=tier_bytes,
    )
