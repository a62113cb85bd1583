"""How a program keeps its memory."""

import contextlib
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
    if not sys.platform.startswith("linux") or any(n.startswith(_OWN_SETTINGS) for n in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  # of glibc alone
        for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
            libc.mallopt(option, value)
