from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from serveprune.cli.lottery_picture import draw_lottery, write_lottery_picture
from serveprune.cli.lottery_table import recipe_text, rows, show_lottery
from serveprune.compression.lottery.report import LayerSparsity, LotteryReport, LotteryRound, TrainedNetwork
from serveprune.errors import InvalidArgument


def network(accuracy: float) -> TrainedNetwork:
    return TrainedNetwork(accuracy=accuracy, steps=250, best_step=250, ended_by="budget", seconds=30.0)


def lottery(*, reinitialized: bool = True) -> LotteryReport:
    control = network(0.8) if reinitialized else None
    return LotteryReport(
        rewind={"step": 30},
        start="random",
        scope="global",
        seed=0,
        learned_samples=8000,
        choosing_samples=1000,
        judged_samples=2500,
        weights=10_000,
        all_weights=10_500,
        dense=network(0.9),
        rounds=(
            LotteryRound(round=1, sparsity=0.5, zeros=5000, ticket=network(0.91), reinitialized=control),
            LotteryRound(round=2, sparsity=0.8, zeros=8000, ticket=network(0.88), reinitialized=control),
        ),
        left=2,
        mask="ticket_mask.npz",
        layers=(LayerSparsity(name="a", weights=10_000, zeros=8000),),
        warnings=("the loss of it all ran away",),
    )


def printed(report: LotteryReport, *, width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        show_lottery(report, console, title="net, profile ticket")
    return captured.get()


def test_rows_have_dense_first_and_a_star_at_the_ticket_that_was_left() -> None:
    # sqrt(0.9 * 0.1 / 2500) = 0.006, sqrt(0.8 * 0.2 / 2500) = 0.008
    assert list(rows(lottery())) == [
        ("0.0%", "10,000", "", "", "90.00% ± 0.60", ""),
        ("50.0%", "5,000", "91.00% ± 0.57", "80.00% ± 0.80", "90.00% ± 0.60", "-1.00"),
        ("80.0% *", "2,000", "88.00% ± 0.65", "80.00% ± 0.80", "90.00% ± 0.60", "+2.00"),
    ]


def test_the_table_fits_eighty_columns_with_whole_figures_and_says_what_they_rest_on() -> None:
    text = printed(lottery())
    table = [line for line in text.splitlines() if "%" in line and "±" in line and "accuracy" not in line]
    assert len(table) == 3
    assert max(map(len, table)) <= 80
    assert any("80.0% *" in line and "88.00% ± 0.65" in line and "+2.00" in line for line in table)
    words = " ".join(text.split())
    assert "2,500 labelled samples of the calibration set that were neither learned from (8,000)" in words
    assert "8,000 of the 10,000 weights that may be removed, 76.2% of all 10,500 learned numbers" in words
    assert "warning: the loss of it all ran away" in words


def test_a_lottery_without_controls_leaves_their_cells_empty() -> None:
    assert [row[3] for row in rows(lottery(reinitialized=False))] == ["", "", ""]


@pytest.mark.parametrize(
    ("rewind", "told"),
    [
        ({"step": 30}, "weights rewound to step 30"),
        ({"learning_rate": 7}, "learning rate rewound to step 7"),
        ({"checkpoint": "/a/b.safetensors"}, "weights rewound to a checkpoint"),
    ],
)
def test_recipe_text_says_what_every_round_goes_back_to(rewind: dict[str, int | str], told: str) -> None:
    assert told in recipe_text(lottery().model_copy(update={"rewind": rewind}))


@pytest.mark.parametrize("reinitialized", [True, False])
def test_the_picture_has_a_line_for_tickets_one_for_dense_and_one_for_controls(reinitialized: bool) -> None:
    (axes,) = draw_lottery(lottery(reinitialized=reinitialized), title="net").axes
    legend = axes.get_legend()
    assert legend is not None
    labels = {text.get_text() for text in legend.get_texts()}
    expected = {"dense", "ticket"} | ({"same mask, random re-initialization"} if reinitialized else set())
    assert labels == expected
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["50.0%", "80.0%"]


def test_the_picture_is_written_in_the_format_that_the_name_says(tmp_path: Path) -> None:
    write_lottery_picture(lottery(), tmp_path / "a.png", title="net")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
    for name in ("a.svg", "b.svg"):
        write_lottery_picture(lottery(), tmp_path / name, title="net")
    assert "<svg" in (tmp_path / "a.svg").read_text()
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_picture_is_an_error_with_a_reason_when_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "full.png").mkdir()
    with pytest.raises(InvalidArgument, match=r"full\.png could not be written"):
        write_lottery_picture(lottery(), tmp_path / "full.png", title="net")
