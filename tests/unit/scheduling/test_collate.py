from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.scheduling.variants import Variant

from serveprune.errors import Internal
from serveprune.oip.tensor import Array
from serveprune.scheduling.collate import collate, join, slices, split
from serveprune.scheduling.job import Job
from serveprune.scheduling.padding import Padding

PADDING = Padding({"ids": 0, "mask": 0}, frozenset({"tokens"}))
OUTPUTS = ("tokens", "mean", "bias")


def encode(feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
    """Count only what the mask says counts: one output per token, one per row, one of another input."""
    ids, mask = feeds["ids"], feeds["mask"]
    by_name = {
        "tokens": np.stack([ids * mask + 1, mask], axis=2),
        "mean": (ids * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1),
        "bias": feeds["bias"] * 3,
    }
    return [by_name[name] for name in outputs]


def text(variant: Variant, rows: int, length: int, *, outputs: tuple[str, ...] = (), first: int = 0) -> Job:
    ids = np.arange(first, first + rows * length).reshape(rows, length)
    feeds: dict[str, Array] = {"ids": ids, "mask": np.ones_like(ids), "bias": np.arange(rows)[:, None] + first}
    return Job(variant, feeds, rows, 1e9, lambda result: None, outputs=outputs)


SELECTIONS = st.lists(st.sampled_from(OUTPUTS), max_size=3, unique=True).map(tuple)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 7), SELECTIONS), min_size=1, max_size=6))
def test_each_job_gets_what_it_would_get_alone(jobs: list[tuple[int, int, tuple[str, ...]]]) -> None:
    variant = Variant(padding=PADDING, output_names=OUTPUTS)
    batch = [
        text(variant, rows, length, outputs=outputs, first=100 * index)
        for index, (rows, length, outputs) in enumerate(jobs)
    ]
    feeds, outputs = collate(batch)
    assert {len(array) for array in feeds.values()} == {sum(job.rows for job in batch)}
    assert set(outputs) == {name for job in batch for name in job.wanted()}
    answers = split(batch, outputs, encode(feeds, outputs))
    for job, answer in zip(batch, answers, strict=True):
        alone = encode(job.feeds, job.wanted())
        assert [array.shape for array in answer] == [array.shape for array in alone]
        for got, expected in zip(answer, alone, strict=True):
            np.testing.assert_allclose(got, expected)


def test_no_tensor_is_copied_for_a_job_alone() -> None:
    job = text(Variant(padding=PADDING, output_names=OUTPUTS), 3, 4)
    feeds, outputs = collate([job])
    assert feeds is job.feeds
    arrays = encode(feeds, outputs)
    assert all(got is made for got, made in zip(split([job], outputs, arrays)[0], arrays, strict=True))


@pytest.mark.parametrize("shape", [(), (2, 4), (6, 4)])
def test_rows_are_not_handed_out_when_there_are_not_as_many_as_went_in(shape: tuple[int, ...]) -> None:
    variant = Variant(output_names=("y",))
    jobs = [Job(variant, {"x": np.zeros((2, 4))}, 2, 1e9, lambda result: None) for _ in range(2)]
    with pytest.raises(Internal, match="output y: expected 4 rows for 4 rows of input"):
        split(jobs, ("y",), [np.zeros(shape)])


@given(st.integers(1, 40), st.integers(1, 12))
def test_large_job_is_cut_and_joined_unchanged(rows: int, most: int) -> None:
    job = text(Variant(padding=PADDING, output_names=OUTPUTS), rows, 3, outputs=("bias", "tokens"))
    cut = list(slices(job, most))
    assert [len(feeds["ids"]) for feeds in cut[:-1]] == [most] * (len(cut) - 1)
    assert 1 <= len(cut[-1]["ids"]) <= most
    whole = join(job, [encode(feeds, job.wanted()) for feeds in cut])
    for got, expected in zip(whole, encode(job.feeds, job.wanted()), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([np.zeros((2, 3)), np.zeros((1, 3))], "output y: expected 4 rows"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], "do not fit together"),
        ([np.zeros(()), np.zeros(())], "do not fit together"),
    ],
)
def test_parts_are_not_joined_when_they_do_not_fit(parts: list[Array], message: str) -> None:
    job = Job(Variant(output_names=("y",)), {"x": np.zeros((4, 1))}, 4, 1e9, lambda result: None)
    with pytest.raises(Internal, match=message):
        join(job, [[part] for part in parts])
