from serveprune.compression.sensitivity.report import Change, SensitivityReport


def change(
    layer: str,
    *,
    kind: str = "channels",
    lost: float = 0.02,
    saved: tuple[float, float, float] = (0.9, 1.0, 1.1),
    strength: float = 0.5,
    error: float = 0.01,
) -> Change:
    int8 = kind == "Conv"
    return Change(
        layer=layer,
        name=f"{layer}.weight",
        change="int8" if int8 else "prune",
        kind=kind,
        strength=1.0 if int8 else strength,
        before=None if int8 else 64,
        after=None if int8 else round(64 * (1 - strength)),
        error=error,
        quality={"top1_agreement": 1 - lost},
        quality_lost=lost,
        saved_ms=saved[1],
        saved_ms_low=saved[0],
        saved_ms_high=saved[2],
        rounds=25,
        saved_bytes=500_000,
    )


def report(*changes: Change, metric: str = "top1_agreement", samples: int = 200) -> SensitivityReport:
    return SensitivityReport(
        model="net",
        metric=metric,
        evaluation_set="held.npz",
        evaluation_samples=samples,
        held_out_samples=2000,
        calibration_samples=512,
        error_samples=64,
        batch_size=8,
        length=None,
        threads=1,
        scheme="static",
        dense_ms=12.0,
        dense_bytes=4_000_000,
        changes=changes or (change("stem"), change("head", kind="Conv", lost=0.0), change("stem", strength=0.75)),
        left_out=("gate: ignore: gate*",),
        warnings=(),
        measured="2026-01-02T03:04:05+00:00",
    )
