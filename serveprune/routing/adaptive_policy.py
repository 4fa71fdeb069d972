"""Which tier an adaptive deployment serves a request with. Pure: no clock, no lock, immutable state.

A request gets the best tier whose predicted finish, with a margin, meets the target. As in SuperServe's SlackFit
(NSDI'25) the time that is left decides; as in Proteus (ASPLOS'24) and INFaaS (ATC'21) overload costs quality first,
and requests only when the fastest tier is not fast enough.

That rule alone keeps the queue as long as the target allows, and every burst then meets a full one. So there is a
*ceiling*, the best tier that requests may get now. A request that does not fit at the ceiling gets a smaller tier at
once; when that goes on, the ceiling falls, and the queue gets short. It rises by one tier when the next better one
has had time to spare for a while, and not at a load that overwhelmed that tier before: that is what keeps it from
flapping.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from serveprune.routing.candidate import Candidate
from serveprune.scheduling.forecast import Forecast


class Verdict(StrEnum):
    """Why a request gets the tier it gets, or none."""

    BEST = "best"
    """The best tier that meets the target on an idle server."""
    LOAD = "load"
    """A smaller one, because of the load now or a moment ago."""
    LATE = "late"
    """The fastest: its time is over, but nothing is queued that a rejection would spare."""
    IMPOSSIBLE = "impossible"
    """The fastest: no tier meets the target even on an idle server."""
    REJECTED = "rejected"
    """None: what is queued already takes too long for every tier."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a request.

    Attributes:
        candidate: The tier that serves it; of a rejected one, the tier that would be done first.
        retry_after_seconds: Of a rejected one: until so much of the queue is done that the candidate fits.
    """

    verdict: Verdict
    candidate: Candidate
    retry_after_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Overload:
    """A load that was too much for a tier.

    Attributes:
        load: Seconds of compute that arrived per second, in those of the best tier.
        until: When it may be tried again although the load has not fallen.
        blocked_seconds: How long it may not.
    """

    load: float
    until: float
    blocked_seconds: float


@dataclass(frozen=True, slots=True)
class AdaptiveState:
    """What is remembered from request to request.

    Attributes:
        ceiling: Rank of the best tier that requests may get.
        since: When the ceiling got there.
        rose: It got there from below, so that the tier is on trial.
        last: When the last request came.
        load: Seconds of compute that arrive per second, in those of the best tier, lately.
        settled_at: When the last fall has taken effect.
        roomy_since: Since when the next better tier has had time to spare in every forecast; ``None``: it has not.
        tight_since: Since when requests have not fitted at the ceiling; ``None``: they fit.
        overloads: By rank.
        steps_up: How often the ceiling rose.
        steps_down: How often it fell.
    """

    ceiling: int
    since: float
    last: float
    rose: bool = False
    load: float = 0.0
    settled_at: float = -math.inf
    roomy_since: float | None = None
    tight_since: float | None = None
    overloads: Mapping[int, Overload] = field(default_factory=dict)
    steps_up: int = 0
    steps_down: int = 0


@dataclass(frozen=True, slots=True)
class AdaptivePolicy:
    """Decides, for one target.

    The figures were set on a simulated server (`tests/unit/routing/test_adaptive_simulation.py`) whose service times
    scatter (lognormal, sigma 0.15) and whose forecasts are wrong by up to 20 %. A forecast of 0.8 of the truth takes
    a factor of 1.25; the rest of the margins is for the scatter, of which a wait of many batches has little, and for
    what no forecast knows: who else will join the batch, and that it is the executor which is late that one waits for.
    Times are in targets, so that what is tuned for 50 ms holds for 5 s.

    Attributes:
        target_seconds: From arrival to answer.
        wait_safety: Forecasts of the wait are multiplied by this before they are compared with the target.
        compute_safety: The same for the time of computing.
        roomy: A better tier has time to spare if it leaves more than one minus this of the slack: of what an idle
            server would leave of the target.
        relaxed: Requests fit at the ceiling again when they take no more than this of the slack.
        hold_targets: How long a better tier must have time to spare before it becomes the ceiling.
        grace_targets: How long requests may not fit before the ceiling falls: one that does not says little.
        settling_targets: How long after a fall it does not fall again: the queue is still that of the better tier.
        trial_targets: A tier that falls within so many targets of its rise was overwhelmed; it is not tried again
            for as long, and for twice as long each time the load overwhelms it again, unless the load falls.
        longest_block_targets: The longest that comes to.
        relief: The load has fallen when it is below this fraction of what overwhelmed the tier.
        load_targets: Over how many targets the load is averaged.
    """

    target_seconds: float
    wait_safety: float = 1.75
    compute_safety: float = 1.35
    roomy: float = 0.5
    relaxed: float = 0.75
    hold_targets: float = 3.0
    grace_targets: float = 0.1
    settling_targets: float = 0.5
    trial_targets: float = 20.0
    longest_block_targets: float = 320.0
    relief: float = 0.8
    load_targets: float = 5.0

    def start(self, *, now: float) -> AdaptiveState:
        """Return the state of a deployment that has not seen a request."""
        return AdaptiveState(ceiling=0, since=now, last=now)

    def decide(
        self, state: AdaptiveState, candidates: Sequence[Candidate], *, now: float, elapsed_seconds: float = 0.0
    ) -> tuple[AdaptiveState, Decision]:
        """Choose the tier for one request.

        Args:
            state: From `start`, or from the decision before.
            candidates: At least one, from best to smallest.
            now: On the clock of the state, and not before the decision before.
            elapsed_seconds: Since the request arrived.
        """
        nearest = min(candidates, key=lambda each: each.forecast.alone_seconds)
        if nearest.forecast.alone_seconds > self.target_seconds:
            return replace(state, last=now), Decision(Verdict.IMPOSSIBLE, nearest)
        budget = self.target_seconds - elapsed_seconds
        margins = self._margins(nearest.forecast)
        possible = [each for each in candidates if margins.alone(each.forecast) <= self.target_seconds]
        quiet_since = min(now, state.last + self.target_seconds)
        state = self._with_load(state, candidates[0].forecast.alone_seconds, now=now)
        state = self._rise(state, possible, now=now, quiet_since=quiet_since, budget=budget, margins=margins)
        offered = self._offered(candidates, state.ceiling)
        chosen = next((each for each in offered if margins.finish(each.forecast) <= budget), None)
        if chosen is not None:
            verdict = Verdict.BEST if chosen.rank <= possible[0].rank else Verdict.LOAD
            state = self._fall(state, chosen, possible, now=now, budget=budget, margins=margins)
            return state, Decision(verdict, chosen)
        fastest = min(offered, key=lambda each: each.forecast.finish_seconds)
        if fastest.forecast.wait_seconds <= 0:
            return state, Decision(Verdict.LATE, fastest)
        state = self._fall(state, fastest, possible, now=now, budget=budget, margins=margins)
        surplus_seconds = (margins.finish(fastest.forecast) - budget) / margins.wait
        return state, Decision(Verdict.REJECTED, fastest, surplus_seconds)

    def _offered(self, candidates: Sequence[Candidate], ceiling: int) -> Sequence[Candidate]:
        """Return what a request may get, in the order of preference.

        Where a smaller tier is not the faster one, that is also what lies above the ceiling and is faster.
        """
        allowed = [each for each in candidates if each.rank >= ceiling] or list(candidates[-1:])
        quickest_seconds = min([each.forecast.alone_seconds for each in allowed])
        above = candidates[: len(candidates) - len(allowed)]
        quicker = [each for each in above if each.forecast.alone_seconds < quickest_seconds]
        return allowed + quicker[::-1]

    def _margins(self, nearest: Forecast) -> "_Margins":
        if nearest.alone_seconds * self.compute_safety <= self.target_seconds:
            return _Margins(self.wait_safety, self.compute_safety)
        # A target that leaves no room for margins is kept as well as it can be.
        return _Margins(1.0, 1.0)

    def _with_load(self, state: AdaptiveState, compute_seconds: float, *, now: float) -> AdaptiveState:
        window = self.load_targets * self.target_seconds
        load = state.load * math.exp(min(state.last - now, 0.0) / window) + compute_seconds / window
        return replace(state, last=now, load=load)

    def _rise(
        self,
        state: AdaptiveState,
        possible: Sequence[Candidate],
        *,
        now: float,
        quiet_since: float,
        budget: float,
        margins: "_Margins",
    ) -> AdaptiveState:
        """Raise the ceiling to the next better tier if that has had time to spare for long enough.

        Args:
            state: As it is.
            possible: Candidates that meet the target on an idle server.
            now: On the clock of the state.
            quiet_since: When the requests before this one must have been done: from then on nobody was there to
                see that there was time to spare.
            budget: Seconds that are left of the target.
            margins: On forecasts.
        """
        better = next((each for each in reversed(possible) if each.rank < state.ceiling), None)
        if better is None:
            return state
        if self._is_blocked(state, better.rank, now=now):
            return replace(state, roomy_since=None)
        if margins.slack_used(better.forecast, budget=budget) > self.roomy:
            return replace(state, roomy_since=None)
        roomy_since = quiet_since if state.roomy_since is None else state.roomy_since
        if now - roomy_since < self.hold_targets * self.target_seconds:
            return replace(state, roomy_since=roomy_since)
        return replace(
            state,
            ceiling=better.rank,
            since=now,
            rose=True,
            roomy_since=None,
            tight_since=None,
            steps_up=state.steps_up + 1,
        )

    def _is_blocked(self, state: AdaptiveState, rank: int, *, now: float) -> bool:
        overload = state.overloads.get(rank)
        return overload is not None and now < overload.until and state.load > self.relief * overload.load

    def _fall(
        self,
        state: AdaptiveState,
        chosen: Candidate,
        possible: Sequence[Candidate],
        *,
        now: float,
        budget: float,
        margins: "_Margins",
    ) -> AdaptiveState:
        """Lower the ceiling to the chosen tier if load has been the reason for smaller ones for long enough.

        A request that is too large for a better tier even on an idle server says nothing about the load.
        """
        if not any(state.ceiling <= each.rank < chosen.rank for each in possible):
            if state.tight_since is None or margins.slack_used(chosen.forecast, budget=budget) > self.relaxed:
                return state
            return replace(state, tight_since=None)
        tight_since = now if state.tight_since is None else state.tight_since
        if now < state.settled_at or now - tight_since < self.grace_targets * self.target_seconds:
            return replace(state, tight_since=tight_since)
        return replace(
            state,
            ceiling=chosen.rank,
            since=now,
            rose=False,
            settled_at=now + self.settling_targets * self.target_seconds,
            roomy_since=None,
            tight_since=None,
            overloads=self._overloads(state, now=now),
            steps_down=state.steps_down + 1,
        )

    def _overloads(self, state: AdaptiveState, *, now: float) -> Mapping[int, Overload]:
        """Note the load as too much for the ceiling if that was on trial."""
        trial_seconds = self.trial_targets * self.target_seconds
        if not state.rose or now - state.since >= trial_seconds:
            return state.overloads
        before = state.overloads.get(state.ceiling)
        blocked_seconds = trial_seconds
        if before is not None and state.load > self.relief * before.load:
            longest_seconds = self.longest_block_targets * self.target_seconds
            blocked_seconds = min(2 * before.blocked_seconds, longest_seconds)
        overload = Overload(state.load, now + blocked_seconds, blocked_seconds)
        return {**state.overloads, state.ceiling: overload}


@dataclass(frozen=True, slots=True)
class _Margins:
    """What forecasts are multiplied by before they are compared with the time there is."""

    wait: float
    compute: float

    def alone(self, forecast: Forecast) -> float:
        return self.compute * forecast.alone_seconds

    def finish(self, forecast: Forecast) -> float:
        return self.wait * forecast.wait_seconds + self.compute * forecast.compute_seconds

    def slack_used(self, forecast: Forecast, *, budget: float) -> float:
        """Return how much of the time that an idle server would have to spare is taken; above 1 is too late."""
        slack = budget - self.alone(forecast)
        return (self.finish(forecast) - self.alone(forecast)) / slack if slack > 0 else math.inf
