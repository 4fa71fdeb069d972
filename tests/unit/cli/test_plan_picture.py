from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image
from unit.cli.plans import counted_plan, group, timed_plan

from serveprune.cli.plan_picture import check_picture, draw, shortened, write_picture
from serveprune.errors import InvalidArgument, MissingExtra


def words(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()}


def bars(axes: Axes) -> list[tuple[float, str, float | None]]:
    """Width, colour and opacity of every bar, in the order they were drawn."""
    found = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return [(round(bar.get_width(), 3), to_hex(bar.get_facecolor()), bar.get_alpha()) for bar in found]


def test_picture_shows_each_group_as_a_bar_of_what_stays_and_the_whole_model_last() -> None:
    figure = draw(timed_plan())
    (axes,) = figure.axes
    drawn = bars(axes)
    assert [width for width, _, _ in drawn[:4]] == [1.0, 1.0, 1.0, 1.0]
    assert [width for width, _, _ in drawn[4:]] == [0.5, 0.583, 1.0, 0.667]
    assert len({colour for _, colour, _ in drawn[4:]}) == 3  # channels, heads, the whole model
    assert drawn[4][1] == drawn[6][1]
    assert {"stem", "heads", "mlp", "64 to 32", "1.2%", "1.25", "ms saved", "12.0 to 8.00", "4.00"} <= words(figure)
    assert "net, profile lean: 12.0 ms to 8.00 ms (1.50x), error 2.5%" in words(figure)


def test_picture_has_no_milliseconds_when_the_target_is_counted() -> None:
    told = words(draw(counted_plan()))
    assert "whole model, parameters" in told
    assert "ms saved" not in told


@pytest.mark.parametrize("count", [1, 12, 60])
def test_picture_keeps_all_words_inside_whatever_the_number_of_groups(count: int) -> None:
    names = [f"model.encoder.layer.{index}.attention.self.query" for index in range(count)]
    report = timed_plan(*(group(name, before=11008, after=10992) for name in names))
    figure = draw(report.model_copy(update={"model": "a-name-that-is-rather-long-for-a-model-but-happens" * 2}))
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]  # places the words
    width, height = figure.get_size_inches() * figure.dpi
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_text() and text.get_visible():
            box = text.get_window_extent()
            assert box.x0 >= 0, text.get_text()
            assert box.x1 <= width, text.get_text()
            assert box.y0 >= 0, text.get_text()
            assert box.y1 <= height, text.get_text()


def test_write_picture_writes_a_png_that_grows_with_the_groups(tmp_path: Path) -> None:
    sizes = []
    for count in (2, 40):
        path = tmp_path / f"{count}.png"
        write_picture(timed_plan(*(group(f"layer{index}") for index in range(count))), path)
        with Image.open(path) as image:
            assert image.format == "PNG"
            sizes.append(image.size)
    (narrow, low), (wide, high) = sizes
    assert 900 < narrow <= wide < 2400
    assert 300 < low < 600
    assert high > low + 38 * 30


def test_shortened_drops_what_all_names_begin_with_and_keeps_what_tells_them_apart() -> None:
    names = [f"model.language_model.transformer.decoder.layers.{index}.mlp.up_projection" for index in range(3)]
    assert shortened(names) == [f"…{index}.mlp.up_projection" for index in range(3)]
    assert shortened(["stem", "head"]) == ["stem", "head"]
    (cut,) = shortened(["x" * 30 + "y" * 60])
    assert len(cut) <= 56
    assert cut.startswith("xx")
    assert cut.endswith("yy")


@pytest.mark.parametrize("name", ["plan.jpeg", "plan", "missing/plan.png"])
def test_check_picture_refuses_what_could_not_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="--plot"):
        check_picture(tmp_path / name)


def test_check_picture_names_the_extra_when_matplotlib_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"serveprune\[plot\]"):
        check_picture(tmp_path / "plan.png")
