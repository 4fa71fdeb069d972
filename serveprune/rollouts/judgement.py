from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What a guard found."""

    OK = "ok"
    """Enough samples, and nothing that shows with the stated confidence that the bound is broken."""
    NOT_ENOUGH_SAMPLES = "not_enough_samples"
    BREACH = "breach"
    """The bound is broken, with the stated confidence."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one guard found.

    Attributes:
        guard: Its key in the config.
        figures: What it went by, in words for operators.
    """

    guard: str
    verdict: Verdict
    figures: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What all guards found at one moment."""

    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """A breach if one guard found one; else not enough samples if one lacks them, or if there is no guard."""
        found = {finding.verdict for finding in self.findings}
        if Verdict.BREACH in found:
            return Verdict.BREACH
        return Verdict.OK if found == {Verdict.OK} else Verdict.NOT_ENOUGH_SAMPLES

    @property
    def figures(self) -> str:
        """What all guards went by, in words."""
        return "; ".join(finding.figures for finding in self.findings)

    def figures_of(self, verdict: Verdict) -> str:
        """Return what those guards went by that found this."""
        return "; ".join(finding.figures for finding in self.findings if finding.verdict is verdict)
