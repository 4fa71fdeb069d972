from typing import Any

from rich.console import Console

from serveprune.cli.rollout_table import rollout_line, rollout_table

ROLLOUT: dict[str, Any] = {
    "model": "fashion",
    "canary": "int8",
    "stable": "dense",
    "phase": "progressing",
    "reason": "step 2 of 4: pauses for 10m",
    "canary_percent": 20,
    "step": 1,
    "steps": [
        {"setWeight": 20, "pause": None},
        {"setWeight": None, "pause": {"duration": 600.0}},
        {"setWeight": 50, "pause": None},
        {"setWeight": None, "pause": {}},
    ],
    "step_seconds": 153.4,
    "figures": "",
    "guards": [
        {"guard": "max_error_ratio", "verdict": "not_enough_samples", "figures": "error ratio 0 (0 of 12)"},
        {"guard": "max_p99_ms", "verdict": "breach", "figures": "3 % above 40 ms"},
    ],
    "who": None,
    "artifact": "f" * 64,
    "moved_on_by": "this server",
}


def printed(value: Any, *, width: int = 100) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(value)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_block_tells_all_of_a_rollout_under_way() -> None:
    assert printed(rollout_table([ROLLOUT])) == [
        "fashion: int8 takes over from dense",
        "  phase   progressing",
        "  weight  20 % of the requests that name no tier",
        "  steps   20 % > [pause 10m, 2m33s so far] > 50 % > pause until resumed",
        "  reason  step 2 of 4: pauses for 10m",
        "  guards  max_error_ratio  not enough samples  error ratio 0 (0 of 12)",
        "          max_p99_ms       breach              3 % above 40 ms",
    ]


def test_steps_that_are_over_have_no_brackets() -> None:
    aborted = {**ROLLOUT, "phase": "aborted", "guards": [], "who": "ada"}
    lines = printed(rollout_table([aborted, ROLLOUT]))
    assert "  steps     20 % > pause 10m > 50 % > pause until resumed" in lines
    assert "  operator  ada" in lines
    assert lines[6:8] == ["", "fashion: int8 takes over from dense"]


def test_what_a_server_says_is_no_markup_and_narrow_terminals_lose_nothing() -> None:
    said = {**ROLLOUT, "reason": "aborted by [bold]ada[/bold]: " + "why " * 30, "moved_on_by": "process 12 on box"}
    lines = printed(rollout_table([said]), width=60)
    assert max(map(len, lines)) <= 60
    assert any("[bold]ada[/bold]" in line for line in lines)
    assert sum(line.count("why") for line in lines) == 30
    assert lines[-1] == "  moved on by  process 12 on box"


def test_step_that_this_version_does_not_know_is_shown_as_it_is_called() -> None:
    strange = {**ROLLOUT, "phase": "hibernating", "guards": [{"guard": "g", "verdict": "odd", "figures": ""}]}
    lines = printed(rollout_table([strange]))
    assert "  phase   hibernating" in lines
    assert "  guards  g  odd" in lines


def test_line_tells_how_it_stands() -> None:
    assert printed(rollout_line(ROLLOUT)) == ["fashion: progressing, 20 % to int8; step 2 of 4: pauses for 10m"]
