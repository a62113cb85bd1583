"""Files that are replaced as a whole: a reader sees the old file or the new one, never half."""

import contextlib
import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path

# File systems without fsync report one of these; other errors mean that data may be lost.
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], object]) -> Path:
    """Write a file under a temporary name next to `path`, then rename it to `path`.

    The file's data are on disk before the rename, and the rename itself is flushed where the
    platform can: after a crash there is the old file or the whole new one. The folder is made if
    needed.

    Args:
        path: the file to write or to replace.
        write: writes the file under the path that it is called with, which is in the folder of
            `path` and ends in ".tmp". If it raises, `path` is left as it was and the temporary file
            is removed.

    Returns:
        `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a rename is atomic within one file system only; cut off, since
    # names have at most 255 bytes.
    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name[:50]}.{token}.tmp")
    try:
        write(temporary)
        _flush(temporary, os.O_RDWR)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    # Without this a crash may undo the rename. Windows opens no folders.
    with contextlib.suppress(OSError):
        _flush(path.parent, os.O_RDONLY)
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file as UTF-8 with `atomic_write`; line ends stay as they are in `text`."""
    return atomic_write(path, lambda new: new.write_text(text, encoding="utf-8", newline=""))


def _flush(path: Path, flags: int) -> None:
    """Have the operating system put a file or a folder on disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)
