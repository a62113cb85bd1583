"""A bucket for tests: objects in memory under gs://, without locks, renames and folders.

An object appears when its file is closed. Renaming, copying within the bucket and appending fail,
as nothing may depend on them.
"""

import contextlib
from collections.abc import Iterator
from typing import ClassVar
from unittest import mock

from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


class _Bucket(MemoryFileSystem):
    """Files that can be written once as a whole, listed, read and deleted."""

    protocol = ("gcs", "gs")
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    def _refuse(self, *_: object, **__: object) -> None:
        raise NotImplementedError("buckets have none")

    mv = rename = move = copy = cp_file = touch = _refuse

    def _open(self, path, mode="rb", **options):
        assert mode in ("rb", "wb"), mode
        return super()._open(path, mode, **options)

    def mkdir(self, path, create_parents=True, **_):
        """Folders exist while objects are in them."""

    makedirs = mkdir

    def isdir(self, path):
        prefix = self._strip_protocol(path).rstrip("/") + "/"
        return any(name.startswith(prefix) for name in self.store)

    def exists(self, path, **_):
        return self._strip_protocol(path) in self.store or self.isdir(path)


@contextlib.contextmanager
def bucket() -> Iterator[str]:
    """The address of an empty bucket."""
    system = _Bucket()
    system.store.clear()
    with mock.patch.object(type(backend.fsspec_backend), "_get_filesystem", lambda *_: system):
        yield "gs://bucket"
    system.store.clear()
