import yaml

from serveprune.handlers.torchserve.metrics_file import CARRIED, NOT_CARRIED, dimensions, unit, with_carried_metrics
from serveprune.observability.metrics import BATCH_ROWS, METRICS, REQUEST_SECONDS, REQUESTS, TIER_BYTES, TIER_SPEEDUP

OWN = """\
dimensions: [&model_name "ModelName", &level "Level"]
ts_metrics:
  counter: [{name: Requests2XX, unit: Count, dimensions: [*level]}]
model_metrics:
  gauge: [{name: HandlerTime, unit: ms, dimensions: [*model_name, *level]}]
"""


def test_every_metric_of_the_table_is_carried_or_said_not_to_be() -> None:
    assert {*CARRIED, *NOT_CARRIED} == set(METRICS)


def test_gauges_tell_workers_apart_and_counters_do_not() -> None:
    assert dimensions(REQUESTS) == ["model", "version", "tier", "code"]
    assert dimensions(REQUEST_SECONDS) == ["model", "version", "tier"]
    assert dimensions(TIER_BYTES) == ["model", "version", "tier", "WorkerName"]


def test_unit_is_the_one_of_the_name() -> None:
    assert [unit(metric) for metric in (REQUESTS, REQUEST_SECONDS, TIER_BYTES, TIER_SPEEDUP)] == [
        "count",
        "seconds",
        "bytes",
        "ratio",
    ]


def test_file_keeps_torchserves_metrics_when_ours_are_added() -> None:
    document = yaml.safe_load(with_carried_metrics(OWN))

    assert document["ts_metrics"] == {"counter": [{"name": "Requests2XX", "unit": "Count", "dimensions": ["Level"]}]}
    metrics = document["model_metrics"]
    assert metrics["gauge"][0] == {"name": "HandlerTime", "unit": "ms", "dimensions": ["ModelName", "Level"]}
    assert {each["name"] for kind in metrics.values() for each in kind} == {
        "HandlerTime",
        *(metric.name for metric in CARRIED),
    }
    assert {
        "name": "serveprune_request_duration_seconds",
        "unit": "seconds",
        "dimensions": ["model", "version", "tier"],
    } in metrics["histogram"]


def test_file_says_what_is_left_out_and_why() -> None:
    assert f"#   {BATCH_ROWS.name}: TorchServe's histograms" in with_carried_metrics(OWN)
