import pytest

from serveprune.compression.learning.schedule import Schedule, rate_factor


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        ("cosine", 0.0, 0.0),
        ("cosine", 0.1, 0.5),
        ("cosine", 0.2, 1.0),
        ("cosine", 0.6, 0.5),
        ("cosine", 1.0, 0.0),
        ("linear", 0.4, 0.75),
        ("linear", 1.2, 0.0),
        ("constant", 0.1, 0.5),
        ("constant", 1.0, 1.0),
    ],
)
def test_rate_rises_in_the_warm_up_and_goes_down_after_it(schedule: Schedule, progress: float, expected: float) -> None:
    assert rate_factor(progress, schedule=schedule, warmup_ratio=0.2) == pytest.approx(expected)


def test_rate_begins_at_the_top_when_there_is_no_warm_up() -> None:
    assert rate_factor(0.0, schedule="cosine", warmup_ratio=0.0) == 1.0
