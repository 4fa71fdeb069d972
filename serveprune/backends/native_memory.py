"""What glibc's allocator keeps of the memory that native code has freed. With another C library nothing is done."""

import ctypes
import functools
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of options in glibc's malloc.h: ``M_TRIM_THRESHOLD``, ``M_MMAP_THRESHOLD``."""

_LARGE_BYTES = 8 * 2**20
"""Blocks from this size on are mapped one by one, and go back to the system as they are freed."""


@functools.cache
def keep_little() -> None:
    """Bound what the allocator keeps for later, in this process, from now on.

    Left alone, glibc raises both bounds with the largest block that was ever freed, to 32 and 64 MiB: then each
    thread's heap may keep that much at its end, which `give_back` cannot reach. What is smaller than a bound is still
    kept, for a request's tensors would be mapped and zeroed anew each time otherwise.
    """
    library = _glibc()
    if library is not None:
        library.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        library.mallopt(_TRIM_THRESHOLD, _LARGE_BYTES)


def give_back() -> None:
    """Return to the system what was freed but is kept; takes some ten milliseconds, in which others may wait."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@functools.cache
def _glibc() -> Any:
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
