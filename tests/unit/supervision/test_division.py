import pytest

from serveprune.config.deployment import DeploymentConfig
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
        ("max_connections", 4096, 1024),
        ("max_buffered_bytes", 2**30, 2**28),
        ("max_queued_bytes", 2**30, 2**28),
        # One request that the whole server takes, and one that it does not.
        ("max_queued_bytes", 2**28, 2**27),
        ("max_queued_bytes", 2**20, 2**20),
    ],
)
def test_limits_on_the_whole_are_divided_and_never_become_nothing(limit: str, whole: int, part: int) -> None:
    divided = config_of_one_process(config(processes=4, **{limit: whole}))
    assert getattr(divided.server, limit) == part


def test_everything_else_is_as_it_was() -> None:
    before = config(processes=4, executors=8, max_request_bytes="1MiB", drain_seconds=3)
    after = config_of_one_process(before)
    limits = {
        *("executors", "grpc_workers", "max_connections", "max_buffered_bytes"),
        *("max_queued_requests", "max_queued_bytes"),
    }
    assert after.server.model_dump(exclude=limits) == before.server.model_dump(exclude=limits)
    assert after.models == before.models


@pytest.mark.parametrize(("whole", "part"), [(None, None), (100, 25), (2, 1)])
def test_queue_of_a_model_is_divided(whole: int | None, part: int | None) -> None:
    before = config(processes=4).model_copy(
        update={"deployments": {"boots": DeploymentConfig(max_queued_requests=whole, share=2)}}
    )
    after = config_of_one_process(before)
    assert after.deployments == {"boots": DeploymentConfig(max_queued_requests=part, share=2)}


def test_divided_config_survives_the_way_to_a_process() -> None:
    divided = config_of_one_process(config(processes=4))
    assert ServePruneConfig.model_validate_json(divided.model_dump_json()) == divided
