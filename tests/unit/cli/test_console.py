import io

from rich.console import Console

from serveprune.artifacts.builder import BuildProgress
from serveprune.cli.console import ProgressBars, ProgressLines, progress_display


def test_progress_is_plain_lines_when_the_output_is_no_terminal() -> None:
    output = io.StringIO()
    console = Console(file=output, width=40)
    with progress_display(console) as display:
        assert isinstance(display, ProgressLines)
        for percent in range(101):
            display.update("minilm@int8", BuildProgress("quantize", percent / 100))
        display.update("minilm@int8", BuildProgress("storing", 1.0, "a message with [brackets] " + "x" * 60))
        display.finish("minilm@int8", "built in 3.0 s")
    assert output.getvalue().splitlines() == [
        "minilm@int8:   0% quantize",
        "minilm@int8:  25% quantize",
        "minilm@int8:  50% quantize",
        "minilm@int8:  75% quantize",
        "minilm@int8: 100% quantize",
        "minilm@int8: 100% storing a message with [brackets] " + "x" * 60,
        "minilm@int8: built in 3.0 s",
    ]


def test_progress_is_one_bar_per_build_on_a_terminal() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120)
    with progress_display(console) as display:
        assert isinstance(display, ProgressBars)
        display.update("minilm@int8", BuildProgress("quantize", 0.5))
        display.update("fashion@int8", BuildProgress("importing", 0.1, "[linear]"))
        display.finish("minilm@int8", "built in 3.0 s")
    bars = [line for line in output.getvalue().splitlines() if "@int8" in line]
    assert "minilm@int8" in bars[-2]
    assert "built in 3.0 s" in bars[-2]
    assert "fashion@int8" in bars[-1]
    assert "importing [linear]" in bars[-1]
