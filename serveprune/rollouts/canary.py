"""One canary under way: its state, what is stored of it, and what its sides did lately."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from serveprune.config.canary import CanaryConfig
from serveprune.config.deployment import DeploymentConfig
from serveprune.errors import DataLoss, FailedPrecondition
from serveprune.rollouts.guards import judge
from serveprune.rollouts.identity import rollout_identity
from serveprune.rollouts.judgement import Judgement
from serveprune.rollouts.latency_counts import latency_bounds
from serveprune.rollouts.rollout import Change, ChangeKind, Phase, Rollout, Weights
from serveprune.rollouts.rollout_policy import Outcome, RolloutPolicy
from serveprune.rollouts.state_file import StateFile
from serveprune.rollouts.window import Counts, Window

_log = logging.getLogger(__name__)

_WINDOW_SECONDS = 600.0
"""Where no guards say how far back to look."""
_JUDGED_EVERY_SECONDS = 1.0
"""More looks find more by chance; the figures of `docs/guards.md` are for this."""
_STORED_EVERY_SECONDS = 10.0
"""What is lost of a pause, at the most, when the server is killed."""

OnChange = Callable[[str, Change], None]


def side_bounds(config: CanaryConfig) -> tuple[float, ...]:
    """Return the bounds, in seconds, by which the sides of a canary count latencies."""
    guards = config.guards
    return latency_bounds(*(() if guards is None or guards.max_p99_ms is None else (guards.max_p99_ms / 1e3,)))


class Canary:
    """Moves the rollout of one model on, second by second. Not thread-safe; see `Rollouts`."""

    def __init__(self, model: str, deployment: DeploymentConfig, state: StateFile, *, on_change: OnChange) -> None:
        """Begin to wait for the canary's artifact.

        Args:
            model: Its name.
            deployment: Has a canary.
            state: Where the rollout is stored.
            on_change: Told what happened, with the model's name.
        """
        assert deployment.canary is not None
        self.model = model
        self.deployment = deployment
        self.config = deployment.canary
        self.bounds = side_bounds(self.config)
        self._policy = RolloutPolicy(self.config)
        self._state = state
        self._on_change = on_change
        self._is_ours = False
        self._artifact: str | None = None
        self._rollout: Rollout | None = None
        self._stored: Rollout | None = None
        self._not_stored_for: str | None = None
        self._begin_windows()

    def _begin_windows(self) -> None:
        guards = self.config.guards
        seconds = _WINDOW_SECONDS if guards is None else guards.window
        self._canary, self._stable = (Window(seconds, bounds=self.bounds) for _ in range(2))
        self._judgement: Judgement | None = None
        self._judged_at = -math.inf

    def tick(self, *, now: float, artifact: str | None, canary: Counts, stable: Counts) -> Weights:
        """Let time pass.

        Args:
            now: Seconds.
            artifact: Key of what the canary would serve; ``None`` while it is not ready.
            canary: What the canary did since the last call.
            stable: What the other side did.

        Returns:
            How requests are to be spread from now on.
        """
        was_ours, self._is_ours = self._is_ours, self._state.is_ours()
        if artifact is not None and artifact != self._artifact:
            self._begin(artifact)
        elif self._artifact is not None and self._is_ours and not was_ours:
            # Whoever moved it on until now may have done so since it was last read.
            self._begin(self._artifact)
        rollout = self._rollout
        if rollout is None:
            return Weights(0)
        self._canary.add_counts(canary, now=now)
        self._stable.add_counts(stable, now=now)
        if not self._is_ours:
            return self._followed(rollout, is_ready=artifact is not None)
        guards = self.config.guards
        if guards is not None and now - self._judged_at >= _JUDGED_EVERY_SECONDS:
            self._judged_at = now
            self._judgement = judge(guards, canary=self._canary.counts(now=now), stable=self._stable.counts(now=now))
        self._take(self._policy.tick(rollout, now=now, is_ready=artifact is not None, judgement=self._judgement))
        return self._policy.weights(self._rollout or rollout)

    def _begin(self, artifact: str) -> None:
        """Begin, or go on with, the rollout of an artifact."""
        self._artifact = artifact
        self._begin_windows()
        identity = rollout_identity(self.deployment, artifact=artifact)
        try:
            self._stored = self._state.read()
            self._rollout = self._policy.start(identity, stored=self._stored)
        except DataLoss as error:
            # It may have been aborted before, so nothing goes to it until somebody has looked.
            self._stored = None
            reason = f"{error.message}; change the canary's config to begin anew"
            self._rollout = Rollout(identity, phase=Phase.ABORTED, reason=reason)
            self._on_change(self.model, Change(ChangeKind.ABORTED, 0.0, reason, 0))

    def _followed(self, rollout: Rollout, *, is_ready: bool) -> Weights:
        """Go where the server is that holds the lease."""
        try:
            stored = self._state.read()
        except DataLoss:
            stored = None
        if stored is None or stored.identity != rollout.identity:
            return Weights(0)
        self._rollout = replace(stored, is_ready=is_ready)
        return self._policy.weights(self._rollout)

    def act(self, action: str, *, now: float, who: str, why: str = "") -> None:
        """Do what an operator says: ``pause``, ``resume``, ``promote`` or ``abort``.

        Raises:
            InvalidArgument: Nobody is named.
            FailedPrecondition: It does not fit how the rollout stands, or another server moves it on.
        """
        rollout = self._rollout
        if rollout is None:
            raise FailedPrecondition(
                f"expected a rollout under way, got one of {self.model} that waits for {self.config.tier} to be built"
            )
        if not self._is_ours:
            raise FailedPrecondition(f"the rollout of {self.model} is moved on by {self._state.owner()}; ask that one")
        match action:
            case "pause":
                outcome = self._policy.pause(rollout, now=now, who=who)
            case "resume":
                outcome = self._policy.resume(rollout, now=now, who=who)
            case "promote":
                outcome = self._policy.promote(rollout, now=now, who=who)
            case _:
                outcome = self._policy.abort(rollout, now=now, who=who, why=why)
        self._take(outcome)

    def _take(self, outcome: Outcome) -> None:
        self._rollout, changes = outcome
        for change in changes:
            self._on_change(self.model, change)
        self.store()

    def store(self, *, is_last: bool = False) -> None:
        """Store the rollout if anything of note has changed; a disk that is full is tried again."""
        rollout, stored = self._rollout, self._stored
        if rollout is None or not self._is_ours:
            return
        if stored is not None and _of_note(rollout) == _of_note(stored):
            passed = rollout.step_seconds - stored.step_seconds
            if not passed or (passed < _STORED_EVERY_SECONDS and not is_last):
                return
        try:
            self._state.write(rollout)
        except OSError as error:
            # It is tried four times a second.
            if error.strerror != self._not_stored_for:
                _log.error("rollout of %s: its state cannot be stored: %s", self.model, error.strerror)
            self._not_stored_for = error.strerror
        else:
            self._stored, self._not_stored_for = rollout, None

    def close(self) -> None:
        """Store how it stands, and let another server move it on."""
        self.store(is_last=True)
        self._is_ours = False
        self._state.close()

    def describe(self) -> dict[str, Any]:
        """Return how the rollout stands, ready for JSON."""
        rollout = self._rollout
        weights = Weights(0) if rollout is None else self._policy.weights(rollout)
        steps = self.config.model_dump(mode="json")["steps"]
        return {
            "model": self.model,
            "canary": self.config.tier,
            "stable": self.deployment.stable_tier or "adaptive",
            "phase": str(Phase.WAITING if rollout is None else rollout.phase),
            "reason": f"waits for {self.config.tier} to be built" if rollout is None else rollout.reason,
            "canary_percent": weights.canary_percent,
            "step": 0 if rollout is None else rollout.step,
            "steps": steps,
            "step_seconds": 0.0 if rollout is None else rollout.step_seconds,
            "figures": "" if rollout is None else rollout.figures,
            "guards": [
                {"guard": each.guard, "verdict": str(each.verdict), "figures": each.figures}
                for each in (self._judgement.findings if self._judgement is not None else ())
            ],
            "who": None if rollout is None else rollout.who,
            "artifact": self._artifact,
            "moved_on_by": "this server" if self._is_ours else self._state.owner(),
        }

    @property
    def phase(self) -> Phase:
        """How it stands."""
        return Phase.WAITING if self._rollout is None else self._rollout.phase

    @property
    def step(self) -> int:
        """Index of the step that is under way."""
        return 0 if self._rollout is None else self._rollout.step


def _of_note(rollout: Rollout) -> Rollout:
    """Return what is stored of a rollout, but for the time that passes and the words that change with it."""
    return replace(rollout, step_seconds=0.0, is_ready=False, at=None, figures="", reason="")
