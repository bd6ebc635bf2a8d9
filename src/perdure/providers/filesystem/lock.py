"""One process at a time: a lock on a file that the kernel drops when its process dies.

`flock` on a file opened once, because `fcntl` locks are lost when any handle of the process on
that file closes. A forked child closes its copy, or it would keep the store locked.
"""

from __future__ import annotations

import fcntl
import os
import weakref

from perdure.errors import ProviderError
from perdure.providers.filesystem import disk

NAME = "lock"
_PID_BYTES_MAX = 20


class StoreLock:
    """The lock in a folder (a handle). path: how errors call the store."""

    def __init__(self, folder: int, path: str) -> None:
        """Raises ProviderError, naming the process, if another has it."""
        self._handle = disk.open_file(folder, NAME, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._handle, _PID_BYTES_MAX, 0).decode() or "unknown"
            self.drop()
            raise ProviderError(
                f"{path} is in use by the process with id {holder}; a file:// store serves one "
                "process at a time. Stop that process, or use sqlite:// for several"
            ) from None
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, str(os.getpid()).encode(), 0)
        _all_locks.add(self)

    def drop(self) -> None:
        """Give it up; a second call does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


_all_locks: weakref.WeakSet[StoreLock] = weakref.WeakSet()


def _close_in_child() -> None:
    for lock in list(_all_locks):
        lock.drop()


os.register_at_fork(after_in_child=_close_in_child)
