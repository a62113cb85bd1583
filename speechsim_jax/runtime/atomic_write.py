"""Files that are replaced as a whole: a reader sees the old file or the new one, never half.

A path is a local one or, if it has a scheme as in "gs://bucket/runs", one in a bucket
(`etils.epath`). A bucket has neither renames nor locks, but an object appears only when it is
complete.
"""

import contextlib
import errno
import os
import pathlib
import secrets
import shutil
import tempfile
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from speechsim_jax.errors import StorageError

if TYPE_CHECKING:
    AnyPath = Path
else:  # those of etils.epath have the same methods, and no base but this in common
    AnyPath = pathlib.PurePath
"""A path on this machine or in a bucket, from `as_path`."""

# File systems without fsync report one of these; other errors mean that data may be lost.
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


@contextlib.contextmanager
def writing(path: AnyPath, advice: str = "") -> Iterator[None]:
    """Turn an operating system's error into a StorageError that names `path`.

    Args:
        path: the file or folder that is written.
        advice: end of the message.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise StorageError(f"{path} cannot be written ({reason}){advice}") from error


def as_path(path: str | os.PathLike[str]) -> AnyPath:
    """A path on this machine, with ~ expanded, or one in a bucket with the same methods."""
    text = os.fspath(path)
    if "://" not in text and not in_bucket(path):
        return Path(text).expanduser()
    from etils import epath

    return typing.cast(Path, epath.Path(path))


def in_bucket(path: object) -> bool:
    """Whether a path from `as_path` is in a bucket."""
    return isinstance(path, pathlib.PurePath) and not isinstance(path, pathlib.Path)


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], object]) -> AnyPath:
    """Write a file under a temporary name next to `path`, then rename it to `path`.

    The file's data are on disk before the rename, and the rename itself is flushed where the
    platform can: after a crash there is the old file or the whole new one. The folder is made if
    needed. A file in a bucket is written to the temporary folder of this machine and uploaded.

    Args:
        path: the file to write or to replace.
        write: writes the file under the path that it is called with, which is local and ends in
            ".tmp". If it raises, `path` is left as it was and the temporary file is removed.

    Returns:
        `path`.
    """
    path = as_path(path)
    # Cut off, since names have at most 255 bytes.
    name = f".{path.name[:50]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    if in_bucket(path):
        with tempfile.TemporaryDirectory(prefix="speechsim-") as scratch:
            temporary = Path(scratch, name)
            write(temporary)
            upload(temporary, path)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a rename is atomic within one file system only.
    temporary = path.with_name(name)
    try:
        write(temporary)
        flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    # Without this a crash may undo the rename. Windows opens no folders.
    with contextlib.suppress(OSError):
        _flush(path.parent, os.O_RDONLY)
    return path


def write_text(path: str | os.PathLike[str], text: str) -> AnyPath:
    """Write a text file as UTF-8 with `atomic_write`; line ends stay as they are in `text`."""
    return atomic_write(path, lambda new: new.write_text(text, encoding="utf-8", newline=""))


def upload(local: Path, path: AnyPath) -> None:
    """Copy a file of this machine to a path in a bucket."""
    with local.open("rb") as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 24)


def download(path: AnyPath, local: Path) -> None:
    """Copy a file in a bucket to this machine."""
    with path.open("rb") as source, local.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 24)


def remove_folder(path: AnyPath) -> None:
    """Delete a folder with everything in it, if there is one."""
    if not in_bucket(path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.rmtree()  # pyright: ignore[reportAttributeAccessIssue]  # epath has it


def flush(path: Path) -> None:
    """Have the operating system put a file on disk."""
    _flush(path, os.O_RDWR)


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
