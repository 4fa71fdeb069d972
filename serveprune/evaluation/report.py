from serveprune.artifacts.manifest import Manifest, Measurements

_DECIBELS = "sqnr_db"


def measurement_rows(measurements: Measurements) -> tuple[tuple[str, str], ...]:
    """Return what was measured as (label, text) for a table; the headline metric comes first."""
    latency = measurements.latency
    names = sorted(measurements.quality, key=lambda name: name != measurements.metric)
    threads = "thread" if latency.threads == 1 else "threads"
    timing = (
        f"{latency.tier_ms:.3g} ms (dense {latency.dense_ms:.3g} ms; batch of {latency.batch_size}, "
        f"{latency.threads} {threads}, {latency.rounds} rounds)"
    )
    tier_bytes, dense_bytes = measurements.tier_bytes, measurements.dense_bytes
    size = (
        f"{bytes_text(tier_bytes)} (dense {bytes_text(dense_bytes)}; {dense_bytes / max(tier_bytes, 1):.2f}x smaller)"
    )
    return (
        ("backend", measurements.backend),
        *((_label(name), _quality(measurements, name)) for name in names),
        ("batch deviation", f"{measurements.batch_deviation:.2g}"),
        ("latency", timing),
        (
            "speedup",
            f"{latency.speedup:.2f}x ({latency.speedup_low:.2f}x to {latency.speedup_high:.2f}x)",
        ),
        ("size", size),
        ("measured on", f"{measurements.samples} samples: {measurements.evaluation_set}"),
    )


def backend_rows(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """Return what was measured on the backends that do not serve a tier, as (label, text) for a table."""
    measured = [(f"with {each.backend}", _summary(each)) for each in manifest.further_measurements]
    unmeasured = [(f"with {name}", f"not measured: {why}") for name, why in manifest.unmeasured_backends.items()]
    return (*measured, *unmeasured)


def _summary(measured: Measurements) -> str:
    latency = measured.latency
    return (
        f"{measured.metric.replace('_', ' ')} {measured.headline_quality:.4f}, {latency.speedup:.2f}x, "
        f"{latency.tier_ms:.3g} ms, batch deviation {measured.batch_deviation:.2g}"
    )


def bytes_text(size: int) -> str:
    """Return a size for people, in binary units."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.2f} GiB"


def _label(name: str) -> str:
    return "SQNR" if name == _DECIBELS else name.replace("_", " ")


def _quality(measurements: Measurements, name: str) -> str:
    value = measurements.quality[name]
    text = f"{value:.1f} dB" if name == _DECIBELS else f"{value:.4f}"
    dense = measurements.dense_quality.get(name)
    return text if dense is None else f"{text} (dense {dense:.4f})"
