import numpy as np
import pytest
from pydantic import ValidationError

from serveprune.artifacts.manifest import LatencyRecord
from serveprune.compression.pruning.coupled_allocation import Candidates, Movable
from serveprune.compression.pruning.dependency_graph import Kind, PruningGroup
from serveprune.compression.pruning.footprint_cost import FootprintCost, SizeProduct
from serveprune.compression.pruning.group_axes import AxisSize
from serveprune.compression.pruning.latency_table import FragmentTable, LatencyTable
from serveprune.compression.pruning.target import allocate_target, candidate_widths, distance, misses
from serveprune.config.pruning import PruneTarget
from serveprune.errors import InvalidArgument

WIDTHS = np.array([16, 32, 48, 64])
DENSE = np.array([64, 64])
MOVABLES: list[Movable] = [
    Candidates(0, WIDTHS, np.array([6.0, 3.0, 1.0, 0.0])),
    Candidates(1, WIDTHS, np.array([0.6, 0.3, 0.1, 0.0])),
]
# 2 ms whatever the widths, 4 ms for each group at its whole width, and as much less as it is narrower.
LATENCY = LatencyTable(
    tuple(FragmentTable((group,), ((16.0, 64.0),), np.array([1.0, 4.0])) for group in (0, 1)),
    ((2.0, 4.0), (8.0, 10.0)),
    DENSE,
)
COUNTED = FootprintCost(
    [*(SizeProduct.of((AxisSize(0, {group: 1}),)) for group in (0, 1)), SizeProduct(72.0, ())], dense=DENSE
)


def group(kind: Kind, width: int) -> PruningGroup:
    return PruningGroup("weight", kind, np.arange(width), (), ())


@pytest.mark.parametrize(
    ("kind", "width", "round_to", "expected"),
    [
        ("channels", 64, 16, (16, 32, 48, 64)),
        ("channels", 40, 16, (16, 32, 40)),
        ("neurons", 12, 16, (12,)),
        ("neurons", 9, 1, (4, 5, 6, 7, 8, 9)),
        ("heads", 4, 16, (1, 2, 3, 4)),
        ("head_dims", 12, 16, (4, 8, 12)),
    ],
)
def test_candidate_widths_respect_the_kind(kind: Kind, width: int, round_to: int, expected: tuple[int, ...]) -> None:
    assert candidate_widths(group(kind, width), round_to=round_to) == expected


def test_speedup_narrows_the_group_that_loses_least() -> None:
    found = allocate_target(MOVABLES, target=PruneTarget(speedup=10 / 7), cost=LATENCY)
    assert found.widths.tolist() == [64, 16]
    assert LATENCY.predict(found.widths) == pytest.approx(7)
    assert found.error == pytest.approx(0.6)


def test_latency_target_is_the_same_in_milliseconds() -> None:
    found = allocate_target(MOVABLES, target=PruneTarget(latency_ms=7), cost=LATENCY)
    assert found.widths.tolist() == [64, 16]


def test_parameters_ratio_is_what_is_left() -> None:
    # 200 parameters, of which 72 are not in any group; 3/4 left is 150.
    found = allocate_target(MOVABLES, target=PruneTarget(parameters_ratio=0.76), cost=COUNTED)
    assert found.widths.tolist() == [64, 16]
    assert found.cost == 152


def test_ratio_keeps_the_same_part_of_every_group() -> None:
    found = allocate_target(MOVABLES, target=PruneTarget(ratio=0.5), cost=COUNTED)
    assert found.widths.tolist() == [32, 32]
    assert found.error == pytest.approx(3.3)


@pytest.mark.parametrize(
    ("target", "cost", "message"),
    [
        (PruneTarget(speedup=4), LATENCY, r"asked 4x; the prunable part allows 2\.5x at most"),
        (PruneTarget(latency_ms=3), LATENCY, r"asked 3 ms; the prunable part allows 4 ms at least"),
        (PruneTarget(latency_ms=11), LATENCY, r"asked 11 ms; the dense model takes 10 ms already"),
        (
            PruneTarget(flops_ratio=0.2),
            COUNTED,
            r"asked flops_ratio 0\.2; the prunable part allows 0\.52 at least",
        ),
    ],
)
def test_target_is_refused_and_says_what_is_possible_when_out_of_reach(
    target: PruneTarget, cost: LatencyTable | FootprintCost, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        allocate_target(MOVABLES, target=target, cost=cost)


def test_speedup_is_refused_when_the_cost_is_not_a_latency() -> None:
    with pytest.raises(TypeError, match="expected a latency table for the target speedup, got FootprintCost"):
        allocate_target(MOVABLES, target=PruneTarget(speedup=1.5), cost=COUNTED)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"speedup": 1.5, "ratio": 0.5},
        {"speedup": 1.0},
        {"ratio": 1.0},
        {"flops_ratio": 0.0},
        {"latency_ms": 0},
        {"speedup": True},
        {"speed": 2},
    ],
)
def test_target_config_is_refused_when_it_is_not_exactly_one_sound_target(given: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        PruneTarget.model_validate(given)


def test_target_config_says_its_kind_and_value() -> None:
    target = PruneTarget.model_validate({"bytes_ratio": 0.5})
    assert (target.kind, target.value) == ("bytes_ratio", 0.5)


def measured(ratio: float, *, low: float, high: float, rounds: int = 25) -> LatencyRecord:
    return LatencyRecord(
        dense_ms=12.0,
        tier_ms=12.0 * ratio,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        batch_size=8,
        rounds=rounds,
        threads=2,
    )


@pytest.mark.parametrize(
    ("latency", "missed"),
    [
        (measured(0.52, low=0.51, high=0.53), False),  # 4 %
        (measured(0.54, low=0.53, high=0.55), True),  # 8 %, certain to 0.4 %
        (measured(0.46, low=0.45, high=0.47), True),
        (measured(0.54, low=0.30, high=0.90), False),  # certain to 0.6 / sqrt(25) = 0.12
        (measured(0.54, low=0.30, high=0.90, rounds=400), True),  # to 0.03
    ],
)
def test_latency_misses_its_target_when_it_is_off_by_more_than_noise(latency: LatencyRecord, missed: bool) -> None:
    assert misses(latency, target=PruneTarget(speedup=2)) is missed
    assert misses(latency, target=PruneTarget(latency_ms=6)) is missed


def test_distance_is_relative_to_what_is_asked_for() -> None:
    assert distance(measured(0.6, low=0.6, high=0.6), target=PruneTarget(speedup=2)) == pytest.approx(0.2)
    assert distance(measured(0.4, low=0.4, high=0.4), target=PruneTarget(latency_ms=6)) == pytest.approx(0.2)
