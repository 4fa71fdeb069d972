import threading
from dataclasses import dataclass, field

from serveprune.models.registry import Model
from serveprune.observability.request_record import RequestRecord
from serveprune.oip.answer import Answer
from serveprune.oip.messages import InferenceResponse
from serveprune.oip.tensor import Tensor
from serveprune.routing.objective import Objective
from serveprune.routing.route import Route
from serveprune.routing.tier_selection import TierChoice
from serveprune.serving.shadowing import ShadowSample
from serveprune.serving.variant_series import VariantSeries


@dataclass(slots=True, eq=False)
class Call:
    """One admitted request on its way through the server.

    Attributes:
        name: Of the model as it was asked for, with its qualifier if it had one; and the id of the request.
        outputs: That are wanted; empty for all.
        version: That was asked for, if any.
        size_bytes: Of the inputs, which are freed sooner than the answer is, so that no reference to them is here.
        series: Of the variant that serves; of the tier that is wanted until one is chosen.
        more: See `DataPlane.submit`.
        sample: Is to be computed once more when it has been answered.
        sticky_key: What its deployment spreads requests by.
        route: Once it is chosen.
        record: Of the request, where its front end keeps one.
        finished: Locked when the request has ended, for it ends once.
    """

    name: str
    id: str | None
    outputs: tuple[str, ...]
    version: str | None
    model: Model
    choice: TierChoice
    objective: Objective | None
    priority: int
    size_bytes: int
    started: float
    deadline: float
    series: VariantSeries
    more: bool
    sticky_key: str | None = None
    record: RequestRecord | None = None
    sample: ShadowSample | None = None
    preprocessing_seconds: float | None = None
    route: Route | None = None
    answer: Answer = field(default_factory=Answer)
    finished: threading.Lock = field(default_factory=threading.Lock)

    def response(self, outputs: tuple[Tensor, ...]) -> InferenceResponse:
        """Return the answer that these outputs are, once a tier was chosen."""
        assert self.route is not None
        return InferenceResponse(
            model=self.name,
            # Not that of the model that admitted it: another one may have taken over meanwhile.
            version=self.route.instance.identity[1],
            outputs=outputs,
            tier=self.route.tier,
            tier_reason=self.route.explanation,
            id=self.id,
        )
