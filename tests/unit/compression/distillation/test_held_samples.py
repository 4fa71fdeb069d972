from pathlib import Path

import numpy as np

from serveprune.compression.distillation.held_samples import HeldSamples


def test_samples_come_back_as_they_were_when_memory_holds_all_some_or_none(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    samples = [
        (generator.normal(size=(3 + index, 4)).astype(np.float16), np.float32(index), np.zeros((0, 2), np.float32))
        for index in range(6)
    ]
    for most_bytes in (10_000, 100, 0):
        file = tmp_path / f"{most_bytes}.bin"
        held = HeldSamples(file, most_bytes=most_bytes)
        for index in (3, 0, 5, 1, 2, 4):
            held.put(index, [np.asarray(array) for array in samples[index]])
        for index, arrays in enumerate(samples):
            for got, wanted in zip(held.get(index), arrays, strict=True):
                assert got.dtype == np.asarray(wanted).dtype
                np.testing.assert_array_equal(got, wanted)
        assert file.exists() == (most_bytes < 10_000)


def test_held_sample_is_a_copy_of_the_batch_it_came_from(tmp_path: Path) -> None:
    batch = np.ones((4, 2), np.float32)
    held = HeldSamples(tmp_path / "held.bin")
    held.put(0, [batch[1]])
    batch[:] = 0
    assert held.get(0)[0].tolist() == [1, 1]
