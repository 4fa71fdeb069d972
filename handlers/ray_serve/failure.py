from dataclasses import dataclass

from serveprune import errors
from serveprune.errors import Code, ServePruneError


@dataclass(frozen=True, slots=True)
class Failure:
    """An error on its way from one process to another, where Ray would wrap an exception in one of its own."""

    code: Code
    message: str
    retry_after_seconds: float | None = None

    @classmethod
    def of(cls, error: ServePruneError) -> "Failure":
        """Describe an error."""
        return cls(error.code, error.message, error.retry_after_seconds)

    def error(self) -> ServePruneError:
        """Return the error that it describes, of the class that has its code."""
        return _CLASSES[self.code](self.message, retry_after_seconds=self.retry_after_seconds)


_CLASSES: dict[Code, type[ServePruneError]] = {
    Code.INVALID_ARGUMENT: errors.InvalidArgument,
    Code.UNAUTHENTICATED: errors.Unauthenticated,
    Code.NOT_FOUND: errors.NotFound,
    Code.FAILED_PRECONDITION: errors.FailedPrecondition,
    Code.UNAVAILABLE: errors.Unavailable,
    Code.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    Code.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    Code.CANCELLED: errors.Cancelled,
    Code.UNIMPLEMENTED: errors.Unimplemented,
    Code.DATA_LOSS: errors.DataLoss,
    Code.INTERNAL: errors.Internal,
}
