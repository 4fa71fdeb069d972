"""The few operations that a shared store needs of a file system that machines share, and its errors in words.

fsspec is imported when one is opened, so that a local store costs nothing.
"""

import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serveprune.errors import FailedPrecondition, MissingExtra, Unavailable

_CHUNK_BYTES = 16 * 2**20
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
            except FileNotFoundError:
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
                except FileNotFoundError:
                    return None
            with source:
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
            except FileNotFoundError:
                return []
            return sorted(name for each in found if (name := str(each).rstrip("/").rpartition("/")[2]))

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
        with self._reported(f"reading {name}"):
            chunk: bytes = source.read(_CHUNK_BYTES)
            return chunk

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
            self._opened = file_system, root.rstrip("/")
        return self._opened

    def _arguments(self, protocol: str) -> dict[str, Any]:
        # What another machine wrote a moment ago has to be seen.
        arguments: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if protocol in ("file", "local"):
            arguments["auto_mkdir"] = True
        if protocol in _EXTRAS:
            seconds = self._timeout_seconds
            bounds = {"connect_timeout": seconds, "read_timeout": seconds, "retries": {"max_attempts": 2}}
            arguments |= {"config_kwargs": bounds | dict(self._options.get("config_kwargs", {}))}
            return self._options | arguments
        return arguments | self._options

    @contextmanager
    def _reported(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (MissingExtra, FailedPrecondition):
            raise
        except PermissionError as error:
            raise FailedPrecondition(
                f"the shared store {self.url} refused {doing}: {_said(error)}; expected the permissions that "
                "docs/shared_store.md lists, and credentials in the environment"
            ) from error
        except FileNotFoundError as error:
            # A missing object was answered already.
            raise FailedPrecondition(
                f"the shared store {self.url}: {doing}: {_said(error)}; expected a bucket that exists"
            ) from error
        except Exception as error:  # each file system's SDK has errors of its own
            if type(error).__name__ == "NoCredentialsError":
                raise FailedPrecondition(
                    f"the shared store {self.url}: {doing}: {_said(error)}; set AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY, or give the machine a role"
                ) from error
            raise Unavailable(f"the shared store {self.url} cannot be used now: {doing}: {_said(error)}") from error


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
