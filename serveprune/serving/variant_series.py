from serveprune.errors import Code
from serveprune.observability import metrics as series
from serveprune.observability.metrics import Metrics
from serveprune.routing.route import RouteReason

OK = "OK"
"""Stands in the place of an error's code where there was none."""


class VariantSeries:
    """The series that requests move, bound to one variant.

    Bound once, because to look a series up by its labels costs more than to move it; and so every series is there
    from the start, at zero, which is what makes rates over them right.
    """

    def __init__(self, metrics: Metrics, *, model: str, version: str, tier: str) -> None:
        labels = (model, version, tier)
        self.requested = metrics.counter(series.REQUESTED_TIER, *labels)
        self.served = {reason: metrics.counter(series.SERVED_TIER, *labels, reason) for reason in RouteReason}
        self.answered = {code: metrics.counter(series.REQUESTS, *labels, code) for code in (OK, *Code)}
        self.preprocessing_seconds = metrics.histogram(series.PREPROCESSING_SECONDS, *labels)
        self.queue_seconds = metrics.histogram(series.QUEUE_SECONDS, *labels)
        self.compute_seconds = metrics.histogram(series.COMPUTE_SECONDS, *labels)
        self.request_seconds = metrics.histogram(series.REQUEST_SECONDS, *labels)
