import pytest
from unit.cli.sensitivities import change, report

from serveprune.compression.sensitivity.report import SensitivityReport


def test_ms_per_point_is_the_gain_over_the_loss_in_hundredths() -> None:
    assert report().ms_per_point(change("a", lost=0.04, saved=(1.9, 2.0, 2.1))) == pytest.approx(0.5)


def test_ms_per_point_counts_a_loss_that_the_samples_cannot_show_as_one_sample() -> None:
    told = report(samples=200)
    assert told.least_loss == 0.005
    assert told.ms_per_point(change("a", lost=0.0)) == pytest.approx(2.0)


def test_least_loss_is_small_when_the_metric_is_no_count() -> None:
    assert report(metric="cosine").least_loss == 1e-4


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ((0.9, 1.0, 1.1), True),
        ((-0.5, 0.1, 0.6), False),  # 25 rounds: 1.1 / 5 = 0.22
        ((-0.5, 0.3, 0.6), True),
        ((-0.2, -0.1, -0.05), False),
    ],
)
def test_saves_time_tells_a_gain_from_noise(saved: tuple[float, float, float], expected: bool) -> None:
    assert change("a", saved=saved).saves_time is expected


def test_sorted_puts_bargains_first_and_what_gains_nothing_last() -> None:
    noise = (-1.0, 0.0, 1.0)
    told = report(
        change("noisy", saved=noise, lost=0.03),
        change("dear", lost=0.1),
        change("harmless", saved=noise, lost=0.01),
        change("cheap", lost=0.01),
    ).sorted()
    assert [each.layer for each in told.changes] == ["cheap", "dear", "harmless", "noisy"]


def test_most_sensitive_names_each_layer_once_by_its_largest_error() -> None:
    told = report(
        change("a", error=0.1), change("b", error=0.3), change("a", error=0.5), change("c", kind="Conv", error=0.9)
    )
    assert [(each.layer, each.error) for each in told.most_sensitive("prune", count=5)] == [("a", 0.5), ("b", 0.3)]
    assert [each.layer for each in told.most_sensitive("int8", count=5)] == ["c"]


def test_answer_gives_milliseconds_per_point_and_null_where_nothing_is_gained() -> None:
    told = report(change("a", lost=0.02), change("b", saved=(-1.0, 0.0, 1.0))).answer()
    assert [each["ms_per_point"] for each in told["changes"]] == [pytest.approx(0.5), None]


def test_report_reads_back_from_what_is_written_of_it() -> None:
    told = report()
    assert SensitivityReport.model_validate_json(told.model_dump_json(exclude={"least_loss"})) == told
