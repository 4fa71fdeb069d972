"""The few operations that a shared store needs of a file system that machines share, and its errors in words.

fsspec is imported when one is opened, so that a local store costs nothing.
"""

import hashlib
import logging
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from serveprune.errors import FailedPrecondition, MissingExtra, Unavailable

_log = logging.getLogger(__name__)

_CHUNK_BYTES = 16 * 2**20
_ATTEMPTS = 2
_EXISTS = 412
_TRANSIENT_STATUSES = frozenset((408, 409, 412, 416, 425, 429))
"""Of those from 400 to 499, which else say that asking again is useless: too slow, too much, changed meanwhile."""

_ERRORS_OF_SETTINGS = frozenset(
    (
        *("PermissionError", "FileNotFoundError", "TypeError", "ValueError", "NotImplementedError"),
        *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "SSOError", "LoginError"),
        *("TokenRetrievalError", "ConfigParseError", "InvalidConfigError", "ParamValidationError"),
    )
)
"""Classes, also of SDKs that may not be installed, of what goes wrong until a person changes something."""
_EXTRAS = {"s3": "s3", "s3a": "s3"}
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs", "abfss": "adlfs"}


class ObjectStorage:
    """Objects below a URL. Thread-safe; opened at the first use."""

    def __init__(self, url: str, *, options: Mapping[str, Any], timeout_seconds: float) -> None:
        """Describe the place; nothing is opened yet.

        Args:
            url: Such as ``s3://bucket/prefix``.
            options: For the file system, as fsspec takes them.
            timeout_seconds: Bound on connecting, and on the next bytes; applies to S3.
        """
        self.url = url
        self._options = dict(options)
        self._timeout_seconds = timeout_seconds
        self._opened: tuple[Any, str] | None = None

    def check(self) -> None:
        """Ask something, and hear whether there is an answer.

        Raises:
            Unavailable, FailedPrecondition: See `read`.
        """
        self.read("nothing-has-this-name")

    def read(self, name: str) -> bytes | None:
        """Return an object's content, or ``None`` if there is none.

        Raises:
            Unavailable: The storage cannot be reached.
            FailedPrecondition: It refuses.
        """
        with self._reported(f"reading {name}"):
            file_system, root = self._open()
            try:
                content: bytes = file_system.cat_file(f"{root}/{name}")
            except FileNotFoundError as error:
                _expect_a_bucket(error)
                return None
            return content

    def download(self, name: str, target: Path) -> str | None:
        """Write an object to a file as it comes, and return the SHA-256 of what came; ``None`` if there is none.

        Raises:
            OSError: The disk is full.
            Unavailable, FailedPrecondition: See `read`.
        """
        digest = hashlib.sha256()
        with target.open("wb") as file:
            with self._reported(f"reading {name}"):
                file_system, root = self._open()
                try:
                    source = file_system.open(f"{root}/{name}", "rb", block_size=_CHUNK_BYTES, cache_type="none")
                except FileNotFoundError as error:
                    _expect_a_bucket(error)
                    return None
            with source:
                # Outside of what reports errors of the storage: this disk may be full.
                while chunk := self._chunk(source, name):
                    digest.update(chunk)
                    file.write(chunk)
        return digest.hexdigest()

    def upload(self, source: Path, name: str) -> None:
        """Write an object from a file, over what may be there.

        Raises:
            Unavailable, FailedPrecondition: See `read`.
        """
        with self._reported(f"writing {name}"):
            file_system, root = self._open()
            file_system.put_file(str(source), f"{root}/{name}")

    def create(self, name: str, content: bytes) -> bool:
        """Write an object if there is none of that name, in one step, and tell whether it was written.

        Raises:
            Unavailable, FailedPrecondition: See `read`.
        """
        with self._reported(f"writing {name}"):
            file_system, root = self._open()
            try:
                if _is_local(file_system):
                    _link(Path(f"{root}/{name}"), content)
                else:
                    file_system.pipe_file(f"{root}/{name}", content, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                # Not all servers say which condition did not hold; there was no other.
                if _status(error) != _EXISTS:
                    raise
                return False
            return True

    def write(self, name: str, content: bytes) -> None:
        """Write an object, over what may be there.

        Raises:
            Unavailable, FailedPrecondition: See `read`.
        """
        with self._reported(f"writing {name}"):
            file_system, root = self._open()
            file_system.pipe_file(f"{root}/{name}", content)

    def list(self, folder: str) -> list[str]:
        """Return the names of what lies in a folder, without the folder's own.

        Raises:
            Unavailable, FailedPrecondition: See `read`.
        """
        with self._reported(f"listing {folder}"):
            file_system, root = self._open()
            try:
                found = file_system.ls(f"{root}/{folder}", detail=False, refresh=True)
            except FileNotFoundError as error:
                _expect_a_bucket(error)
                return []
            return sorted(name for each in found if (name := str(each).rstrip("/").rpartition("/")[2]))

    def modified(self, name: str) -> datetime | None:
        """Return when an object was last written, by the clock of the storage; ``None`` if there is none.

        Raises:
            Unavailable, FailedPrecondition: See `read`; or this file system does not tell.
        """
        with self._reported(f"asking when {name} was written"):
            file_system, root = self._open()
            try:
                found: datetime = file_system.modified(f"{root}/{name}")
            except FileNotFoundError as error:
                _expect_a_bucket(error)
                return None
            return found if found.tzinfo is not None else found.replace(tzinfo=UTC)

    def remove(self, name: str) -> None:
        """Remove an object; one that is not there is no error.

        Raises:
            Unavailable, FailedPrecondition: See `read`.
        """
        with self._reported(f"removing {name}"):
            file_system, root = self._open()
            try:
                file_system.rm_file(f"{root}/{name}")
            except FileNotFoundError:
                return

    def _chunk(self, source: Any, name: str) -> bytes:
        """Return the next bytes; a line that breaks off in the middle of a large file does not begin it anew."""
        with self._reported(f"reading {name}"):
            for attempt in count(1):
                try:
                    return bytes(source.read(_CHUNK_BYTES))
                except FileNotFoundError:
                    break  # removed meanwhile: the digest tells that this is not all of it
                except Exception as error:  # each file system's SDK has errors of its own
                    if attempt == _ATTEMPTS:
                        raise
                    _log.info("%s: read again from where it broke off: %s", name, _said(error))
        return b""

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:
            protocol = self.url.partition("://")[0]
            try:
                import fsspec

                file_system, root = fsspec.core.url_to_fs(self.url, **self._arguments(protocol))
            except ImportError as error:
                extra = _EXTRAS.get(protocol)
                needed = f'"serveprune[{extra}]"' if extra else f"fsspec {_PACKAGES.get(protocol, '')}".strip()
                raise MissingExtra(f"store.path {self.url} needs packages ({error}): pip install {needed}") from error
            except (TypeError, ValueError) as error:
                raise FailedPrecondition(f"store.path {self.url} or store.options: {error}") from error
            if protocol in _EXTRAS:
                # Else it does all that the SDK has tried in vain five times over, which multiplies every timeout.
                file_system.retries = 1
            self._opened = file_system, root.rstrip("/")
        return self._opened

    def _arguments(self, protocol: str) -> dict[str, Any]:
        # What another machine wrote a moment ago has to be seen.
        arguments: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if protocol in ("file", "local"):
            arguments["auto_mkdir"] = True
        if protocol in _EXTRAS:
            seconds = self._timeout_seconds
            bounds = {"connect_timeout": seconds, "read_timeout": seconds, "retries": {"total_max_attempts": _ATTEMPTS}}
            arguments |= {
                # One part of 50 MB in memory at a time; and what is small is read without asking for its size first.
                "max_concurrency": 1,
                **self._options,
                "config_kwargs": bounds | dict(self._options.get("config_kwargs", {})),
            }
            return arguments
        return arguments | self._options

    @contextmanager
    def _reported(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (MissingExtra, FailedPrecondition):
            raise
        except Exception as error:  # each file system's SDK has errors of its own
            if _is_of_settings(error):
                raise FailedPrecondition(
                    f"the shared store {self.url} cannot be used as things are: {doing}: {_said(error)}; expected "
                    f"{_expected(error)}"
                ) from error
            raise Unavailable(f"the shared store {self.url} cannot be used now: {doing}: {_said(error)}") from error


def _is_of_settings(error: Exception) -> bool:
    """Tell whether a person has to change something, so that waiting is in vain."""
    status = _status(error)
    if status is not None and 400 <= status < 500:
        return status not in _TRANSIENT_STATUSES and not isinstance(error, TimeoutError)
    return any(kind.__name__ in _ERRORS_OF_SETTINGS for kind in type(error).__mro__)


def _expected(error: Exception) -> str:
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return "a bucket that exists"  # an object that does not was answered already
    if isinstance(error, PermissionError):
        return "the permissions that docs/shared_store.md lists, and credentials in the environment"
    if "Credentials" in kind:
        return (
            "credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role "
            "(docs/shared_store.md)"
        )
    return "another store.path, other store.options, or another environment of the SDK (docs/shared_store.md)"


def _expect_a_bucket(error: FileNotFoundError) -> None:
    """Raise the error again if it is not the object that is missing, but the bucket."""
    if _code(error) == "NoSuchBucket":
        raise error


def _response(error: BaseException) -> Mapping[str, Any]:
    """Return the answer of S3 that an error came from, or nothing."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, Mapping):
            return response
        cause = cause.__cause__
    return {}


def _status(error: BaseException) -> int | None:
    status: int | None = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status


def _code(error: BaseException) -> str | None:
    code: str | None = _response(error).get("Error", {}).get("Code")
    return code


def _said(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _is_local(file_system: Any) -> bool:
    return "file" in ((file_system.protocol,) if isinstance(file_system.protocol, str) else file_system.protocol)


def _link(target: Path, content: bytes) -> None:
    """Create a file whole, or not at all: opening it exclusively would show it half-written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{uuid.uuid4().hex}")
    draft.write_bytes(content)
    try:
        os.link(draft, target)
    finally:
        draft.unlink()
