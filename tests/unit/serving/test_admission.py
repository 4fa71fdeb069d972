import threading

import pytest

from serveprune.errors import ResourceExhausted
from serveprune.serving.admission import Admission


def bounded() -> Admission:
    admission = Admission(limit=3, max_bytes=100)
    admission.limit_models({"small": 1})
    return admission


@pytest.fixture
def admission() -> Admission:
    return bounded()


def test_places_are_bounded_over_all_models(admission: Admission) -> None:
    for model in ("a", "b", "small"):
        admission.enter(model, 1)
    with pytest.raises(ResourceExhausted, match=r"holds 3 requests \(server\.max_queued_requests\)") as refused:
        admission.enter("a", 1)
    assert refused.value.retry_after_seconds == 1.0
    admission.leave("b", 1)
    admission.enter("a", 1)


def test_places_of_a_model_are_bounded_alone(admission: Admission) -> None:
    admission.enter("small", 1)
    with pytest.raises(ResourceExhausted, match=r"1 requests to small .*deployments\.small\.max_queued_requests"):
        admission.enter("small", 1)
    admission.enter("a", 1)
    admission.leave("small", 1)
    admission.enter("small", 1)


def test_bytes_are_bounded_over_all_models(admission: Admission) -> None:
    admission.enter("a", 60)
    with pytest.raises(ResourceExhausted, match=r"60 bytes of inputs, and this one 41 \(server\.max_queued_bytes: 100"):
        admission.enter("b", 41)
    admission.enter("b", 40)
    admission.leave("a", 60)
    admission.enter("a", 60)


def test_request_is_admitted_whatever_its_size_when_it_is_alone(admission: Admission) -> None:
    admission.enter("a", 1000)
    with pytest.raises(ResourceExhausted):
        admission.enter("a", 0)
    admission.leave("a", 1000)
    admission.enter("a", 100)


def test_refused_request_takes_nothing(admission: Admission) -> None:
    admission.enter("small", 60)
    for model, size in (("small", 1), ("a", 50)):
        with pytest.raises(ResourceExhausted):
            admission.enter(model, size)
    admission.enter("a", 40)
    admission.enter("b", 0)


def test_no_more_are_ever_in_than_may_be_when_many_come_at_once() -> None:
    admission = bounded()
    inside, most, lock = {"a": 0, "small": 0}, {"a": 0, "small": 0, "all": 0}, threading.Lock()

    def come_and_go(model: str) -> None:
        for _ in range(300):
            try:
                admission.enter(model, 20)
            except ResourceExhausted:
                continue
            with lock:
                inside[model] += 1
                most[model] = max(most[model], inside[model])
                most["all"] = max(most["all"], sum(inside.values()))
            with lock:
                inside[model] -= 1
            admission.leave(model, 20)

    threads = [threading.Thread(target=come_and_go, args=(model,)) for model in ("a", "a", "a", "small", "small", "a")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most["small"] == 1
    assert most["all"] <= 3
    # Everything is given back.
    for _ in range(3):
        admission.enter("a", 0)
