"""The one error tree. Codes are gRPC's words; front ends translate them, nothing else does."""

from collections.abc import Sequence
from enum import StrEnum
from typing import ClassVar, Self


class Code(StrEnum):
    """Protocol-neutral status of a failed operation, in the words of ``grpc.StatusCode``."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    NOT_FOUND = "NOT_FOUND"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    UNAVAILABLE = "UNAVAILABLE"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    DATA_LOSS = "DATA_LOSS"
    INTERNAL = "INTERNAL"


class ServePruneError(Exception):
    """Base of every error a user can meet.

    The message says what was expected, what came, and what to do. It is shown to clients as it is, so it
    never holds a stack trace or a secret.
    """

    code: ClassVar[Code] = Code.INTERNAL

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds

    @property
    def is_bad_input(self) -> bool:
        """Whether something that was given has to be changed first, so that trying again is useless."""
        return self.code in (Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.FAILED_PRECONDITION)

    def without_frames(self) -> Self:
        """Return this error without the frames it went through, which keep alive the tensors they worked on."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


class InvalidArgument(ServePruneError):
    """The caller sent something that can never succeed as it stands."""

    code = Code.INVALID_ARGUMENT


class Unauthenticated(ServePruneError):
    """The caller showed no token that this server knows; the message never quotes what it showed."""

    code = Code.UNAUTHENTICATED


class NotFound(ServePruneError):
    """The named model, version, tier or file does not exist."""

    code = Code.NOT_FOUND


class FailedPrecondition(ServePruneError):
    """The system is not in the state the operation needs; a person has to change something."""

    code = Code.FAILED_PRECONDITION


class MissingExtra(FailedPrecondition):
    """An optional dependency is not installed; the message names the extra that brings it."""


class Unavailable(ServePruneError):
    """Not now; the same request may succeed after ``retry_after_seconds``."""

    code = Code.UNAVAILABLE


class ResourceExhausted(ServePruneError):
    """A queue, a disk or a budget is full."""

    code = Code.RESOURCE_EXHAUSTED


class MessageTooLarge(ResourceExhausted):
    """One message is larger than the configured limit (HTTP 413)."""


class DeadlineExceeded(ServePruneError):
    """The request could not be answered in time."""

    code = Code.DEADLINE_EXCEEDED


class Cancelled(ServePruneError):
    """The caller left, or the operation was stopped, before it was done."""

    code = Code.CANCELLED


class Unimplemented(ServePruneError):
    """The protocol has this operation; this server does not."""

    code = Code.UNIMPLEMENTED


class DataLoss(ServePruneError):
    """Stored bytes are not what was written."""

    code = Code.DATA_LOSS


class Internal(ServePruneError):
    """A defect or an unexpected failure; details are in the log."""

    code = Code.INTERNAL


class ConfigError(InvalidArgument):
    """Everything that is wrong with a configuration, found in one go.

    Attributes:
        problems: One line each: where (file, line, key path), what was expected, what came.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class BuildFailed(ServePruneError):
    """A build ended without an artifact: a pass failed, the child process crashed or was killed."""

    code = Code.INTERNAL
