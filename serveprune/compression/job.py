"""The line protocol between the process that asks for a build and the child that makes it."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from serveprune.artifacts.builder import BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.config.server import BuildsConfig, StoreConfig

_LONGEST_REASON = 500


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BuildJob(_Line):
    """All a child needs to make one artifact; JSON on its standard input."""

    request: BuildRequest
    store: StoreConfig
    builds: BuildsConfig
    threads_of_serving: int = Field(1, description="Threads of one batch in serving; latency is measured with them.")
    parent_pid: int = Field(description="The child ends when this process does.")
    settings: dict[str, Any] = Field({}, description="What a worker that answers a question is asked beyond that.")


class ProgressLine(_Line):
    """Where the build is."""

    line: Literal["progress"] = "progress"
    stage: str
    fraction: float
    message: str = ""

    @property
    def progress(self) -> BuildProgress:
        """The progress this line carries."""
        return BuildProgress(self.stage, self.fraction, self.message)


class ResultLine(_Line):
    """How the build ended; the child's last line."""

    line: Literal["result"] = "result"
    outcome: BuildOutcome
    key: str | None = None
    reasons: tuple[str, ...] = ()
    seconds: float = 0.0
    bad_input: bool = False
    findings: dict[str, Any] | None = None

    @classmethod
    def of(cls, result: BuildResult) -> "ResultLine":
        """Put a result on a line; the log's place is the parent's knowledge."""
        return cls(
            outcome=result.outcome,
            key=result.key,
            reasons=result.reasons,
            seconds=result.seconds,
            bad_input=result.bad_input,
            findings=None if result.findings is None else dict(result.findings),
        )

    def result(self, *, log: Path | None = None) -> BuildResult:
        """Take the result off the line."""
        return BuildResult(
            outcome=self.outcome,
            key=self.key,
            reasons=self.reasons,
            seconds=self.seconds,
            bad_input=self.bad_input,
            log=log,
            findings=self.findings,
        )


_LINE: TypeAdapter[ProgressLine | ResultLine] = TypeAdapter(ProgressLine | ResultLine)


def failed_line(reason: str, *, bad_input: bool = False, seconds: float = 0.0) -> ResultLine:
    """Put a failure on a line, cut to what a table can show."""
    shown = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."
    return ResultLine(outcome=BuildOutcome.FAILED, reasons=(shown,), bad_input=bad_input, seconds=seconds)


def parse_line(text: bytes) -> ProgressLine | ResultLine:
    """Read one line of the child.

    Raises:
        ValueError: The line is neither progress nor a result.
    """
    return _LINE.validate_json(text)
