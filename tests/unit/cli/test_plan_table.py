import io

import pytest
from rich.console import Console
from unit.cli.plans import counted_plan, group, timed_plan

from serveprune.cli.plan_table import amount, group_row, headline, percent, show_plan
from serveprune.compression.plan_report import PlanReport


def shown(report: PlanReport, *, coupling: bool = False) -> str:
    text = io.StringIO()
    show_plan(report, Console(file=text, width=160), coupling=coupling)
    return text.getvalue()


def test_show_plan_tells_each_group_the_total_and_what_stays_whole() -> None:
    text = shown(timed_plan())
    rows = [[cell.strip() for cell in line.strip("│\n").split("│")] for line in text.splitlines() if "│" in line]
    assert ["stem", "channels", "64 to 32", "50%", "1.2%", "1.25"] in rows
    assert ["mlp", "channels", "64 to 64", "100%", "0%", "0"] in rows
    assert ["whole model, ms", "", "12.0 to 8.00", "67%", "2.5%", "4.00"] in rows
    assert ["sum_1", "stem", "stays", "50%"] in rows
    assert "left whole: gate, 16 neurons (ignore: gate*)" in text
    assert "pinned: normalised by LayerNormalization: norm_0[0], norm_1[0], norm_2[0] and 2 more" in text
    assert "not understood, so what they touch is kept whole: custom::Odd" in text
    assert "head.weight" not in text


def test_show_plan_names_every_axis_when_coupling_is_asked_for() -> None:
    text = shown(timed_plan(), coupling=True)
    assert (
        "stem: 64 channels go together in\n    stem.weight, axis 0\n    head.weight, axis 1, 49 positions each" in text
    )
    assert "norm_4[0]" in text


def test_show_plan_has_no_milliseconds_when_the_target_is_counted() -> None:
    report = counted_plan()
    assert "ms" not in shown(report).replace("items", "")
    assert headline(report) == (
        "net, profile lean, target parameters_ratio 0.5: 1.20M to 600k parameters (50% left), error 2.5%; "
        "100 calibration samples, importance reconstruction"
    )


def test_headline_says_the_factor_and_on_what_it_was_timed() -> None:
    assert headline(timed_plan()) == (
        "net, profile lean, target speedup 1.5: 12.0 ms to 8.00 ms (1.50x), error 2.5%; batch of 8, 1 thread, "
        "100 calibration samples, importance reconstruction"
    )


def test_show_plan_warns_when_the_answers_are_predicted_to_be_lost() -> None:
    warning = "An error of 203% means that the answers are predicted to have nothing to do with those of dense"
    assert warning in shown(timed_plan().model_copy(update={"error": 2.03}))
    assert "nothing to do with" not in shown(timed_plan())


def test_group_row_says_that_a_block_went_when_nothing_is_left() -> None:
    assert group_row(group("gone", after=0)) == ("gone", "64 to 0", "0%", "with its block", "1.25")


def test_show_plan_prints_names_as_they_are_when_they_look_like_markup() -> None:
    assert "[bold]net[/bold]" in shown(timed_plan(group("stem"), group("[bold]net[/bold]")))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (0.514, "0.51"), (12.34, "12.3"), (267.4, "267"), (446_636, "447k"), (1.2e6, "1.20M")],
)
def test_amount_keeps_three_digits(value: float, text: str) -> None:
    assert amount(value) == text


@pytest.mark.parametrize(("share", "text"), [(0.0, "0%"), (0.000123, "0.012%"), (0.0226, "2.3%"), (0.256, "26%")])
def test_percent_keeps_two_digits_that_mean_something(share: float, text: str) -> None:
    assert percent(share) == text
