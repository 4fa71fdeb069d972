from collections.abc import Sequence
from dataclasses import dataclass

from serveprune.artifacts.builder import BuildOutcome, BuildRequest, BuildResult
from serveprune.artifacts.manifest import Measurements
from serveprune.artifacts.store import Artifact
from serveprune.config.profile import GateConfig
from serveprune.evaluation.gate import FASTER_RATIO, judge


@dataclass(frozen=True, slots=True)
class Choice:
    """On which backends a tier may serve.

    Attributes:
        passing: The measurements that the gate lets pass, the one to serve with first.
        reasons: Why there is none, one sentence each; empty if there is one.
    """

    passing: tuple[Measurements, ...]
    reasons: tuple[str, ...]


def choose(candidates: Sequence[Measurements], gate: GateConfig) -> Choice:
    """Judge what was measured of one graph on each backend, and put the fastest that passes first.

    The backend measured first (ONNX Runtime, where it was) stays first unless another one takes less than
    `FASTER_RATIO` of its time: nearer to that, repeated timings would choose now one and now the other. This is done
    whenever an artifact is used, so a changed gate may change the backend, and needs no new build.
    """
    judged = [(each, judge(each, gate)) for each in candidates]
    passing = [each for each, reasons in judged if not reasons]

    def handicapped(each: Measurements) -> float:
        return each.latency.ratio * (FASTER_RATIO if each is candidates[0] else 1.0)

    named = len(candidates) > 1
    reasons = [f"{each.backend}: {reason}" if named else reason for each, found in judged for reason in found]
    return Choice(tuple(sorted(passing, key=handicapped)), () if passing else tuple(reasons))


def result_of_found(found: Artifact, request: BuildRequest, *, is_anothers: bool) -> BuildResult:
    """Return how a build ends that need not begin, because the store has what it was to make."""
    gate = request.profile.gate if request.profile is not None else None
    reasons = choose(found.manifest.all_measurements, gate).reasons if gate is not None else ()
    outcome = BuildOutcome.REFUSED if reasons else BuildOutcome.CACHED
    return BuildResult(outcome, key=found.key, reasons=reasons, is_anothers=is_anothers)
