"""Files that are replaced as a whole: a failed write leaves the old file and nothing else."""

import errno
import os
import threading
from pathlib import Path

import pytest

from speechsim_jax.runtime.atomic_write import atomic_write, write_text


def test_new_file_in_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    assert atomic_write(str(path), lambda new: new.write_bytes(b"new")) == path
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(new: Path) -> None:
        assert new.parent == tmp_path and new != path
        new.write_text("new")
        assert path.read_text() == "old"

    atomic_write(path, write)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(new: Path) -> None:
        new.write_text("half of the n")
        raise error

    with pytest.raises(type(error)):
        atomic_write(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_makes_no_file_fails(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError):
        atomic_write(path, lambda new: None)
    assert path.read_text() == "old"


def test_data_are_on_disk_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is flushed under its temporary name, the folder after the rename."""
    path, flushed = tmp_path / "file.txt", []

    def fsync(descriptor: int) -> None:
        flushed.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, path.exists()))

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to name an open file")
    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "text")
    (first, before), (second, after) = flushed
    assert first.endswith(".tmp") and not before
    assert second == tmp_path.name and after


@pytest.mark.parametrize(("code", "fails"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_errors_of_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, fails: bool
) -> None:
    """A file system without fsync is written to all the same; a failing disk is reported."""
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fsync(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    if fails:
        with pytest.raises(OSError, match=os.strerror(code)):
            write_text(path, "new")
    else:
        write_text(path, "new")
    assert path.read_text() == ("old" if fails else "new")
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_utf8_with_its_own_line_ends(tmp_path: Path) -> None:
    path = write_text(tmp_path / "file.csv", "é\n\r\n")
    assert path.read_bytes() == "é\n\r\n".encode()


def test_names_as_long_as_a_file_system_holds(tmp_path: Path) -> None:
    name = "é" * 120 + ".txt"
    assert write_text(tmp_path / name, "x").read_text() == "x"


def test_writers_at_the_same_time(tmp_path: Path) -> None:
    """Threads that write one file share no temporary name: one of them wins."""
    path, texts = tmp_path / "file.txt", [str(i) * 1000 for i in range(8)]
    start = threading.Barrier(len(texts))

    def write(text: str) -> None:
        start.wait()
        for _ in range(5):
            write_text(path, text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]
