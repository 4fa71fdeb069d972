"""When a serving process that died is started again, and when that is no use. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """At once after a death now and then; later and later when one follows the other; at last not at all.

    Attributes:
        early_seconds: A process that lived shorter than this died early.
        first_delay_seconds: Wait before the start after the second early death in a row; doubles with each.
        longest_delay_seconds: Bound on that.
        early_deaths: Early deaths in a row after which there is no further start.
        hindered_delay_seconds: Wait before the start after one that could not be, because something beside the process
            has to be mended first; such a one is no death.
    """

    early_seconds: float = 10.0
    first_delay_seconds: float = 0.5
    longest_delay_seconds: float = 30.0
    early_deaths: int = 6
    hindered_delay_seconds: float = 5.0

    def after_death(self, *, lived_seconds: float, early_deaths: int) -> "NextStart":
        """Decide what follows a death.

        Args:
            lived_seconds: Since that process was started.
            early_deaths: In a row, before this one.
        """
        if lived_seconds >= self.early_seconds:
            return NextStart(0.0, early_deaths=0)
        died = early_deaths + 1
        if died >= self.early_deaths:
            return NextStart(None, early_deaths=died)
        delay = 0.0 if died == 1 else self.first_delay_seconds * 2 ** (died - 2)
        return NextStart(min(delay, self.longest_delay_seconds), early_deaths=died)


@dataclass(frozen=True, slots=True)
class NextStart:
    """What follows a death.

    Attributes:
        delay_seconds: How long until the next start; ``None`` if there is to be none.
        early_deaths: In a row, this one included.
    """

    delay_seconds: float | None
    early_deaths: int
