"""How a program keeps its memory."""

import ctypes
import os
import sys

# Of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_OWN_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_pages() -> None:
    """Let glibc use the memory of freed arrays again, for any thread, in place of giving it back.

    The system clears every page that it hands out: with arrays of many megabytes that come and go
    that takes up to a fifth of the time of scoring (docs/design/memory-and-devices.md). Nothing is
    done with another allocator, or where the environment has settings of its own.
    """
    if any(name.startswith(_OWN_SETTINGS) for name in os.environ):
        return
    if (libc := _glibc()) is not None:
        for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
            libc.mallopt(option, value)


def give_back() -> None:
    """Give the pages of freed arrays back to the system, where glibc has kept them.

    For when arrays of other sizes follow, which do not fit where the freed ones were.
    """
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  # of glibc alone
    except (OSError, AttributeError):
        return None
    return libc
