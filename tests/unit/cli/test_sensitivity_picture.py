from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from unit.cli.sensitivities import change, report

from serveprune.cli.sensitivity_picture import draw, write_picture
from serveprune.errors import InvalidArgument


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]


def test_picture_has_a_row_for_each_layer_and_a_dot_for_each_change() -> None:
    figure = draw(report())
    lost, gained = figure.axes
    assert [label.get_text() for label in lost.get_yticklabels()] == ["stem", "head"]
    # 2 points, below what 200 samples show, 2 points
    assert [round(float(np.ravel(line.get_xdata())[0]), 3) for line in lost.lines] == [2.0, 2.0, 0.5]
    assert lost.lines[2].get_markerfacecolor() == "white"
    # a line for the percentiles and a dot per change, and the line at zero
    assert len(gained.lines) == 2 * 3 + 1
    told = words(figure)
    assert {"about 50 % removed", "about 75 % removed", "int8", "too small to tell"} <= set(told)
    assert "points of top1_agreement lost" in told


def test_picture_grows_with_the_number_of_layers() -> None:
    few, many = (draw(report(*(change(f"layer.{index}") for index in range(count)))) for count in (2, 40))
    assert many.get_figheight() > few.get_figheight() + 5


def test_picture_is_written_as_the_format_of_its_name(tmp_path: Path) -> None:
    write_picture(report(), tmp_path / "net.png")
    with Image.open(tmp_path / "net.png") as image:
        assert image.format == "PNG"


def test_picture_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="could not be written"):
        write_picture(report(), tmp_path / "missing" / "net.png")
