import io

from rich.console import Console
from unit.cli.sensitivities import change, report

from serveprune.cli.sensitivity_table import basis, findings, headline, points, row, show_sensitivity, signed


def test_row_tells_a_pruned_group_in_units_and_points() -> None:
    told = report()
    assert row(told, change("stem", lost=0.02)) == (
        *("stem", "64 to 32 channels", "2", "1.00", "0.90 to 1.10", "0.50", "0.50"),
    )


def test_row_marks_a_bargain_as_a_lower_bound_when_no_loss_is_seen() -> None:
    told = report()
    assert row(told, change("head", kind="Conv", lost=0.0))[1:3] == ("int8 Conv", "<0.5")
    assert row(told, change("head", kind="Conv", lost=0.0))[-1] == ">2.00"


def test_row_says_none_when_the_gain_is_noise() -> None:
    assert row(report(), change("a", saved=(-1.0, 0.0, 1.0)))[-1] == "none"


def test_numbers_are_short() -> None:
    told = report(metric="cosine")
    assert [points(told, lost) for lost in (0.0, 0.00123, 0.0456, 0.456)] == ["<0.01", "0.12", "4.6", "46"]
    assert [signed(value) for value in (-0.001, 0.125, -0.2)] == ["0.00", "0.12", "-0.20"]


def test_headline_and_basis_say_on_what_was_measured() -> None:
    kept = report().model_copy(update={"cached": True, "length": 25, "threads": 2})
    assert headline(report()) == "net: dense takes 12.0 ms for a batch of 8 with 1 thread"
    assert headline(kept) == (
        "net: dense takes 12.0 ms for a batch of 8 of 25 tokens with 2 threads; kept since 2026-01-02T03:04:05+00:00"
    )
    assert basis(report()) == (
        "quality: top1_agreement with dense on 200 of 2000 samples of held.npz; one point is 0.01"
    )


def test_findings_name_the_most_sensitive_layers_and_what_was_left_out() -> None:
    told = list(findings(report(change("a", kind="Conv", error=0.2, lost=0.03), change("b", kind="Conv"))))
    assert told[0].startswith("most sensitive to int8, by error: a (3 points), b (2 points); `keep_float`")
    assert told[-1] == "left out: gate: ignore: gate*"
    assert not any("most sensitive to pruning" in line for line in told)


def test_show_sensitivity_prints_names_as_they_are_when_they_look_like_markup() -> None:
    text = io.StringIO()
    show_sensitivity(report(change("[bold]net[/bold]")), Console(file=text, width=120))
    assert "[bold]net[/bold]" in text.getvalue()
    assert "ms/point" in text.getvalue()
