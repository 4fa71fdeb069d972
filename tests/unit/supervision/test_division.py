import pytest

from serveprune.config.root import ServePruneConfig
from serveprune.supervision.division import config_of_one_process


def config(**server: object) -> ServePruneConfig:
    return ServePruneConfig.model_validate({"server": server, "models": {"boots": {"source": {"onnx": __file__}}}})


@pytest.mark.parametrize(
    ("limit", "whole", "part"),
    [
        ("executors", 8, 2),
        ("executors", 7, 1),
        ("executors", 1, 1),
        ("grpc_workers", 64, 16),
        ("max_queued_requests", 1024, 256),
        ("max_queued_requests", 3, 1),
        ("max_buffered_bytes", 2**30, 2**28),
    ],
)
def test_limits_on_the_whole_are_divided_and_never_become_nothing(limit: str, whole: int, part: int) -> None:
    divided = config_of_one_process(config(processes=4, **{limit: whole}))
    assert getattr(divided.server, limit) == part


def test_everything_else_is_as_it_was() -> None:
    before = config(processes=4, executors=8, max_request_bytes="1MiB", drain_seconds=3)
    after = config_of_one_process(before)
    limits = {"executors", "grpc_workers", "max_queued_requests", "max_buffered_bytes"}
    assert after.server.model_dump(exclude=limits) == before.server.model_dump(exclude=limits)
    assert after.models == before.models


def test_divided_config_survives_the_way_to_a_process() -> None:
    divided = config_of_one_process(config(processes=4))
    assert ServePruneConfig.model_validate_json(divided.model_dump_json()) == divided
