"""How a rollout goes on, event by event. Pure: no clock, no lock, immutable state.

The words and most rules are those of Argo Rollouts. Two are ours: a canary that is not ready gets nothing without
losing its step, and a pause does not end before the guards have seen enough and found nothing wrong.
"""

from dataclasses import dataclass, replace

from serveprune.config.canary import CanaryConfig, StepConfig
from serveprune.config.duration import duration_text
from serveprune.errors import DataLoss, FailedPrecondition, InvalidArgument
from serveprune.rollouts.judgement import Judgement, Verdict
from serveprune.rollouts.rollout import FULL_PERCENT, Change, ChangeKind, Phase, Rollout, Weights

Outcome = tuple[Rollout, tuple[Change, ...]]
"""How a rollout stands after an event, and what happened, for the audit log."""


@dataclass(frozen=True, slots=True)
class RolloutPolicy:
    """Decides, for one canary. Moments do not go back.

    Attributes:
        canary: Its steps, and whether it has guards.
    """

    canary: CanaryConfig

    def start(self, identity: str, *, stored: Rollout | None = None) -> Rollout:
        """Begin, or go on with a stored rollout if it is of the same identity.

        Raises:
            DataLoss: The stored one is at a step that there is not.
        """
        if stored is None or stored.identity != identity:
            return self._settled(Rollout(identity), None)
        if stored.step > len(self.canary.steps):
            raise DataLoss(
                f"expected a stored rollout at one of {len(self.canary.steps)} steps, got step {stored.step + 1}"
            )
        return self._settled(replace(stored, is_ready=False, at=None), None)

    def weights(self, rollout: Rollout) -> Weights:
        """Return how requests are spread now."""
        if not rollout.is_ready or rollout.phase is Phase.ABORTED:
            return Weights(0)
        if rollout.phase is Phase.PROMOTED:
            return Weights(FULL_PERCENT)
        return Weights(self._reached_percent(rollout.step))

    def tick(self, rollout: Rollout, *, now: float, is_ready: bool, judgement: Judgement | None) -> Outcome:
        """Let time pass: call this every second or so, and whenever the canary's readiness changes.

        Args:
            rollout: As it stood.
            now: Seconds.
            is_ready: The canary can serve.
            judgement: What its guards find now; ``None`` if it has none.
        """
        changes: list[Change] = []
        was_ready = rollout.is_ready
        rollout = replace(self._counted(rollout, now, passes=is_ready), is_ready=is_ready)
        if is_ready != was_ready and rollout.phase is not Phase.ABORTED:
            kind = ChangeKind.CANARY_READY if is_ready else ChangeKind.CANARY_NOT_READY
            said = "the canary is ready" if is_ready else "the canary is not ready; the stable side serves alone"
            changes.append(self._change(kind, rollout, said))
        if rollout.phase.is_final:
            return rollout, tuple(changes)
        if judgement is not None:
            rollout = replace(rollout, figures=judgement.figures)
            if judgement.verdict is Verdict.BREACH:
                why = f"aborted by its guards: {judgement.figures_of(Verdict.BREACH)}"
                rollout = replace(rollout, phase=Phase.ABORTED, reason=why, who=None, held_by=None)
                return rollout, (*changes, self._change(ChangeKind.ABORTED, rollout, why))
        if is_ready and rollout.held_by is None:
            rollout = self._advanced(rollout, judgement, changes)
        return self._settled(rollout, judgement), tuple(changes)

    def pause(self, rollout: Rollout, *, now: float, who: str) -> Outcome:
        """Hold the rollout where it is: the weight stays, no time passes. Guards still abort it.

        Raises:
            InvalidArgument: Nobody is named.
            FailedPrecondition: It is over, or paused by an operator already.
        """
        rollout = self._asked(rollout, now, who)
        self._expect_open(rollout, "pause")
        if rollout.held_by is not None:
            raise FailedPrecondition(f"expected a rollout that goes on, got one that {rollout.held_by} paused already")
        rollout = self._settled(replace(rollout, held_by=who, who=who), None)
        return rollout, (self._change(ChangeKind.PAUSED, rollout, f"paused by {who}", who=who),)

    def resume(self, rollout: Rollout, *, now: float, who: str) -> Outcome:
        """Lift an operator's pause, or else end the wait of a step that waits for an operator.

        Guards still have their say before a step ends.

        Raises:
            InvalidArgument: Nobody is named.
            FailedPrecondition: There is nothing to resume.
        """
        rollout = self._asked(rollout, now, who)
        self._expect_open(rollout, "resume")
        if rollout.held_by is not None:
            rollout = replace(rollout, held_by=None, who=who)
        elif self._waits_for_operator(rollout):
            rollout = replace(rollout, is_released=True, who=who)
        else:
            raise FailedPrecondition(f"expected a paused rollout to resume, got one that is not: {rollout.reason}")
        rollout = self._settled(rollout, None)
        return rollout, (self._change(ChangeKind.RESUMED, rollout, f"resumed by {who}", who=who),)

    def promote(self, rollout: Rollout, *, now: float, who: str) -> Outcome:
        """Give the canary everything at once, whatever steps and guards say.

        Raises:
            InvalidArgument: Nobody is named.
            FailedPrecondition: It is over, or the canary is not ready.
        """
        rollout = self._asked(rollout, now, who)
        self._expect_open(rollout, "promote")
        if not rollout.is_ready:
            raise FailedPrecondition("expected a canary that is ready to be promoted, got one that is not; wait for it")
        return self._promoted(rollout, who)

    def abort(self, rollout: Rollout, *, now: float, who: str, why: str = "") -> Outcome:
        """Take everything from the canary, for good; also after it was promoted.

        Raises:
            InvalidArgument: Nobody is named.
            FailedPrecondition: It was aborted before.
        """
        rollout = self._asked(rollout, now, who)
        if rollout.phase is Phase.ABORTED:
            raise FailedPrecondition(f"expected a rollout to abort, got one that was {rollout.reason}")
        said = f"aborted by {who}" + (f": {why}" if why else "")
        rollout = replace(rollout, phase=Phase.ABORTED, reason=said, who=who, held_by=None)
        return rollout, (self._change(ChangeKind.ABORTED, rollout, said, who=who),)

    def _advanced(self, rollout: Rollout, judgement: Judgement | None, changes: list[Change]) -> Rollout:
        """Go as many steps on as are over; the canary is ready, and nobody holds it."""
        while not rollout.phase.is_final and self._is_over(rollout, judgement):
            if self._is_last(rollout):
                rollout, said = self._promoted(rollout, None)
                changes += said
                break
            left = self.canary.steps[rollout.step]
            rollout = replace(rollout, step=rollout.step + 1, step_seconds=0.0, is_released=False, who=None)
            if left.setWeight is not None:
                said_now = f"step {rollout.step} of {len(self.canary.steps)}: weight set to {left.setWeight} %"
                changes.append(self._change(ChangeKind.STEP, rollout, said_now))
            under_way = self._step(rollout)
            if under_way is not None and under_way.pause is not None:
                changes.append(self._change(ChangeKind.STEP, rollout, self._pause_in_words(rollout)))
        return rollout

    def _is_over(self, rollout: Rollout, judgement: Judgement | None) -> bool:
        """Return whether the step under way is done with; a promotion is one as well."""
        if self._is_last(rollout):
            return self._guards_agree(rollout, judgement)
        step = self.canary.steps[rollout.step]
        return step.pause is None or (self._time_is_over(rollout) and self._guards_agree(rollout, judgement))

    def _is_last(self, rollout: Rollout) -> bool:
        step = self._step(rollout)
        return step is None or step.setWeight == FULL_PERCENT

    def _time_is_over(self, rollout: Rollout) -> bool:
        step = self._step(rollout)
        if step is None or step.pause is None:
            return True
        duration_seconds = step.pause.duration_seconds
        return rollout.is_released if duration_seconds is None else rollout.step_seconds >= duration_seconds

    def _guards_agree(self, rollout: Rollout, judgement: Judgement | None) -> bool:
        # Before the canary gets anything there is nothing to judge.
        if self.canary.guards is None or self._reached_percent(rollout.step) == 0:
            return True
        return judgement is not None and judgement.verdict is Verdict.OK

    def _waits_for_operator(self, rollout: Rollout) -> bool:
        step = self._step(rollout)
        waits = step is not None and step.pause is not None and step.pause.duration_seconds is None
        return waits and not rollout.is_released

    def _step(self, rollout: Rollout) -> StepConfig | None:
        return self.canary.steps[rollout.step] if rollout.step < len(self.canary.steps) else None

    def _reached_percent(self, step: int) -> int:
        """Return the weight that the steps before this one have set."""
        return max((each.setWeight or 0 for each in self.canary.steps[:step]), default=0)

    def _promoted(self, rollout: Rollout, who: str | None) -> Outcome:
        said = "promoted after the last step" if who is None else f"promoted by {who}"
        rollout = replace(rollout, phase=Phase.PROMOTED, reason=said, who=who, held_by=None)
        figures = f"; {rollout.figures}" if rollout.figures else ""
        return rollout, (self._change(ChangeKind.PROMOTED, rollout, said + figures, who=who),)

    def _settled(self, rollout: Rollout, judgement: Judgement | None) -> Rollout:
        """Return an open rollout with the phase and the reason that its state means."""
        if rollout.phase.is_final:
            return rollout
        phase, reason = self._standing(rollout, judgement)
        return replace(rollout, phase=phase, reason=reason)

    def _standing(self, rollout: Rollout, judgement: Judgement | None) -> tuple[Phase, str]:
        held = "" if rollout.held_by is None else f"paused by {rollout.held_by}"
        if not rollout.is_ready:
            return Phase.WAITING, "; ".join(filter(None, ("waits for the canary to be ready", held)))
        if held:
            return Phase.PAUSED, held
        if self._waits_for_operator(rollout):
            return Phase.PAUSED, self._pause_in_words(rollout)
        if self._time_is_over(rollout) and not self._guards_agree(rollout, judgement):
            missing = "" if judgement is None else f": {judgement.figures_of(Verdict.NOT_ENOUGH_SAMPLES)}"
            return Phase.PROGRESSING, f"waits for its guards to have seen enough{missing}"
        step = self._step(rollout)
        return Phase.PROGRESSING, "goes on" if step is None or step.pause is None else self._pause_in_words(rollout)

    def _pause_in_words(self, rollout: Rollout) -> str:
        step = self._step(rollout)
        assert step is not None
        assert step.pause is not None
        place = f"step {rollout.step + 1} of {len(self.canary.steps)}"
        seconds = step.pause.duration_seconds
        return f"{place}: waits for an operator" if seconds is None else f"{place}: pauses for {duration_text(seconds)}"

    def _counted(self, rollout: Rollout, now: float, *, passes: bool) -> Rollout:
        """Count the time since the last event, if the canary was ready throughout and nobody held it."""
        before = now if rollout.at is None else rollout.at
        passed_seconds = max(0.0, now - before)
        counts = passes and rollout.is_ready and rollout.held_by is None and not rollout.phase.is_final
        step_seconds = rollout.step_seconds + (passed_seconds if counts else 0.0)
        return replace(rollout, step_seconds=step_seconds, at=max(now, before))

    def _asked(self, rollout: Rollout, now: float, who: str) -> Rollout:
        if not who.strip():
            raise InvalidArgument("expected the name of the operator who acts, for the audit log, got none")
        return self._counted(rollout, now, passes=rollout.is_ready)

    def _expect_open(self, rollout: Rollout, what: str) -> None:
        if rollout.phase.is_final:
            raise FailedPrecondition(
                f"expected a rollout under way to {what}, got one that was {rollout.reason}; a change of the canary's "
                "config begins a new one"
            )

    def _change(self, kind: ChangeKind, rollout: Rollout, text: str, *, who: str | None = None) -> Change:
        assert rollout.at is not None
        return Change(kind, rollout.at, text, self.weights(rollout).canary_percent, who)
