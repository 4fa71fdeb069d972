import itertools
import threading

import numpy as np
import pytest
from unit.scheduling.variants import Asked, Variant

from serveprune.errors import Cancelled, Internal, InvalidArgument
from serveprune.scheduling.gathering import Gathering
from serveprune.scheduling.job import JobResult


class Gathered:
    """A job of three parts of two rows each."""

    def __init__(self) -> None:
        self.given_up = 0
        self.asked = Asked(Variant(output_names=("y",)), rows=6)
        self.gathering = Gathering(self.asked.job, parts=3, on_failure=self._give_up)

    def _give_up(self) -> None:
        self.given_up += 1

    def end(self, index: int, *, rows: int = 2) -> None:
        result = JobResult(
            [np.full((rows, 1), index)], queue_seconds=10.0 - index, compute_seconds=0.5, batch_rows=rows
        )
        self.gathering.part(index)(result)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_parts_are_put_together_in_order_whatever_order_they_end_in(order: tuple[int, ...]) -> None:
    gathered = Gathered()
    for index in order[:2]:
        gathered.end(index)
        assert gathered.asked.ends == []
    gathered.end(order[2])
    result = gathered.asked.end()
    assert isinstance(result, JobResult)
    assert result.outputs[0][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    # It waited until its first part was computed, and was computed as long as all of them.
    assert (result.queue_seconds, result.compute_seconds) == (8.0, 1.5)
    assert gathered.given_up == 0


@pytest.mark.parametrize("first", range(3))
def test_whole_fails_once_and_the_rest_is_given_up_when_a_part_fails(first: int) -> None:
    gathered, error = Gathered(), InvalidArgument("shape")
    gathered.end((first + 1) % 3)
    gathered.gathering.part(first)(error)
    assert gathered.asked.error() is error
    assert gathered.given_up == 1
    gathered.gathering.part((first + 2) % 3)(Cancelled("given up"))
    assert (len(gathered.asked.ends), gathered.given_up) == (1, 1)


def test_whole_fails_when_its_parts_do_not_fit_together() -> None:
    gathered = Gathered()
    for index in range(3):
        gathered.end(index, rows=3)
    assert isinstance(gathered.asked.error(), Internal)


@pytest.mark.parametrize("failing", [None, 7])
def test_whole_ends_once_when_parts_end_in_many_threads_at_once(failing: int | None) -> None:
    parts = 16
    for _ in range(20):
        asked = Asked(Variant(output_names=("y",)), rows=parts)
        gathering = Gathering(asked.job, parts=parts, on_failure=lambda: None)
        together = threading.Barrier(parts)

        def end(index: int, together: threading.Barrier = together, gathering: Gathering = gathering) -> None:
            together.wait()
            good = JobResult([np.full((1, 1), index)], queue_seconds=0.0, compute_seconds=0.0, batch_rows=1)
            gathering.part(index)(InvalidArgument("shape") if index == failing else good)

        threads = [threading.Thread(target=end, args=(index,)) for index in range(parts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        result = asked.end()
        if failing is None:
            assert isinstance(result, JobResult)
            assert result.outputs[0][:, 0].tolist() == list(range(parts))
        else:
            assert isinstance(result, InvalidArgument)
