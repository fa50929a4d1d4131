"""Writing HDF5 so that a full disk is an error: where a write fails, the library may end the process (1.14.6)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py


class _Steady(io.FileIO):
    """A file that keeps its first failure, and from then on only seems to be written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        count = len(view)
        with self._kept():
            while view and self.failure is None:
                view = view[super().write(view) :]
        return count

    def truncate(self, size: int | None = None) -> int:
        with self._kept():
            super().truncate(size)
        return self.tell() if size is None else size

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = self.failure or error


@contextlib.contextmanager
def created(path: Path) -> Iterator[Any]:
    """Create a file with h5py, replacing what is there.

    Raises:
        OSError: the file can't be written (full disk, no permission).
    """
    with _Steady(path) as steady:
        try:
            with h5py.File(steady, "w") as file:
                yield file
        finally:
            # What the library says once its file only seems to be written does not matter.
            if steady.failure is not None:
                raise steady.failure
