import logging
import threading
from collections.abc import Callable, Mapping

from serveprune.rollouts.rollouts import Observation, Rollouts

_log = logging.getLogger(__name__)

_TICK_SECONDS = 0.25


class RolloutDriver:
    """Looks at the rollouts four times a second, in a thread of its own, and has requests spread as they say."""

    def __init__(
        self,
        rollouts: Rollouts,
        *,
        observe: Callable[[], Mapping[str, Observation]],
        obey: Callable[[str, int, str | None], None],
    ) -> None:
        """Describe what to look at; nothing runs yet.

        Args:
            rollouts: Decide.
            observe: Returns what each model's canary was up to since the last look.
            obey: Spreads the requests of a model: so many percent to the canary, if it serves this artifact.
        """
        self._rollouts = rollouts
        self._observe = observe
        self._obey = obey
        self._stopped = False
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rollouts", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def look_now(self) -> None:
        """Look at once; an operator may have said something."""
        self._due.set()

    def stop(self) -> None:
        """Look no more, and let other servers move the rollouts on; idempotent."""
        self._stopped = True
        self._due.set()
        if self._thread.is_alive():
            self._thread.join()
        self._rollouts.close()

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._look()
            except Exception:  # without it nothing would be guarded any more
                _log.exception("unexpected failure of the rollouts")
            self._due.wait(_TICK_SECONDS)
            self._due.clear()

    def _look(self) -> None:
        observed = self._observe()
        for model, weights in self._rollouts.tick(observed).items():
            self._obey(model, weights.canary_percent, observed[model].artifact)
