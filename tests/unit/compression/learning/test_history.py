import json

from serveprune.compression.learning.history import Ending, History, HistoryRow


def test_findings_say_what_was_kept_and_are_ready_for_json() -> None:
    rows = (
        HistoryRow(0, None, 0.5, 0.0, 0.0),
        HistoryRow(10, 1 / 3, 0.8, 0.1, 1.23456789),
        HistoryRow(20, 0.25, 0.7, 0.05, 2.5),
        HistoryRow(23, float("inf"), float("nan"), 0.04, 3.0),
    )
    history = History(rows, best_step=10, ending=Ending.DIVERGED, epochs=2.3)
    assert (history.quality_before, history.quality, history.steps, history.improved) == (0.5, 0.8, 23, True)
    found = json.loads(json.dumps(history.findings(), allow_nan=False))
    assert found["ended_by"] == "diverged"
    assert found["best_step"] == 10
    assert found["history"][1] == {
        "step": 10,
        "loss": 0.333333,
        "quality": 0.8,
        "learning_rate": 0.1,
        "seconds": 1.23457,
    }
    assert (found["history"][3]["loss"], found["history"][3]["quality"]) == (None, None)
    assert not History(rows, best_step=0, ending=Ending.BUDGET, epochs=1).improved
