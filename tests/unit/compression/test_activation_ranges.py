import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from unit.compression.graphs import IMAGE_SHAPE, convolutional_graph

from serveprune.compression.quantization.activation_ranges import ActivationRanges, bounded_ranges
from serveprune.compression.quantization.preparation import prepare_for_quantization
from serveprune.errors import BuildFailed
from serveprune.oip.tensor import Array


def observer(folder: Path, name: str = "augmented") -> ActivationRanges:
    prepared = folder / "prepared.onnx"
    prepare_for_quantization(convolutional_graph(folder / "model.onnx"), output=prepared, threads=1)
    return ActivationRanges(
        prepared, operators=("Conv", "Relu", "Add", "Gemm"), augmented=folder / f"{name}.onnx", threads=1
    )


def batches(count: int) -> Iterator[dict[str, Array]]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield {"image": rng.normal(size=(4, *IMAGE_SHAPE)).astype(np.float32)}


def test_ranges_are_those_of_all_samples(tmp_path: Path) -> None:
    seen: list[int] = []
    ranges = observer(tmp_path).observe(batches(7), on_batch=lambda: seen.append(1))
    everything = np.concatenate([batch["image"] for batch in batches(7)])
    low, high = (float(bound.item()) for bound in ranges["image"].range_value)
    assert (low, high) == (float(everything.min()), float(everything.max()))
    assert len(seen) == 7
    assert bounded_ranges(ranges)[1] == set()


def test_memory_does_not_grow_when_there_are_more_samples(tmp_path: Path) -> None:
    ranges = observer(tmp_path)

    def peak_bytes(count: int) -> int:
        gc.collect()
        tracemalloc.start()
        ranges.observe(batches(count), on_batch=lambda: None)
        assert ranges.intermediate_outputs == []
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(40)
    few, many = peak_bytes(40), peak_bytes(160)
    # numpy reports its arrays to tracemalloc; 120 more batches, 10 tensors, two kept arrays of 100 bytes each
    # would be 240 kB.
    assert many < few + 40_000


def test_observing_fails_when_there_is_no_batch(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="calibration set is empty"):
        observer(tmp_path).observe([], on_batch=lambda: None)
