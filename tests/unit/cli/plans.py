from serveprune.compression.plan_report import (
    CoupledAxis,
    PinnedWeight,
    PlannedBlock,
    PlannedGroup,
    PlanReport,
    Prediction,
    WholeGroup,
)


def group(
    name: str, *, after: int = 32, before: int = 64, kind: str = "channels", saved_ms: float | None = 1.25
) -> PlannedGroup:
    return PlannedGroup(
        name=f"{name}.weight",
        label=name,
        kind=kind,
        before=before,
        after=after,
        error=0.0123 if after < before else 0.0,
        saved_ms=saved_ms,
        coupled=(
            CoupledAxis(weight=f"{name}.weight", axis=0, positions_per_unit=1),
            CoupledAxis(weight="head.weight", axis=1, positions_per_unit=49),
        ),
    )


def timed_plan(*groups: PlannedGroup) -> PlanReport:
    return PlanReport(
        model="net",
        tier="lean",
        passes=("prune",),
        planned_pass=1,
        target={"speedup": 1.5},
        structure="auto",
        importance="reconstruction",
        batch_size=8,
        threads=1,
        calibration_samples=100,
        learned_from="calibration set",
        predicted=Prediction(unit="ms", before=12.0, after=8.0),
        error=0.0246,
        groups=groups or (group("stem"), group("heads", after=7, before=12, kind="heads"), group("mlp", after=64)),
        blocks=(PlannedBlock(name="sum_1", removed=False, error=0.5, groups=("stem.weight",)),),
        left_whole=(
            WholeGroup(name="gate.weight", label="gate", kind="neurons", width=16, reason="ignore: gate*", coupled=()),
        ),
        pinned=tuple(
            PinnedWeight(weight=f"norm_{index}", axis=0, width=64, reason=f"normalised by LayerNormalization n{index}")
            for index in range(5)
        ),
        not_understood=("custom::Odd",),
        warnings=(),
    )


def counted_plan() -> PlanReport:
    plan = timed_plan(group("stem", saved_ms=None))
    counted = Prediction(unit="parameters", before=1_200_000, after=600_000)
    return plan.model_copy(update={"predicted": counted, "target": {"parameters_ratio": 0.5}})
