"""Whether a node lives: each holds a lock on a file that the kernel drops when its process dies.

`flock` on a file opened once, because `fcntl` locks are lost when any handle of the process on
that file closes. A forked child closes its copies, or it would keep the parent's nodes alive.
The file says how long the node's leases are, in milliseconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref

from perdure.errors import ProviderError


class NodeLocks:
    """The locks of the nodes of one provider, and a look at those of others."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._held: dict[str, int] = {}
        _all_locks.add(self)

    def take(self, node_id: str, lease_ms: int) -> None:
        """Create and lock the node's file; raises ProviderError if another holds it."""
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            handle = os.open(self._path(node_id), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ProviderError(
                f"cannot make the lock file of a node: {error}; check {self._folder}"
            ) from error
        if not _lock(handle):
            os.close(handle)
            raise ProviderError(f"node {node_id} is registered by another process")
        self._held[node_id] = handle
        # It is only shown: a node can do without.
        with contextlib.suppress(OSError):
            os.pwrite(handle, str(lease_ms).encode(), 0)

    def drop(self, node_id: str) -> None:
        """Remove the node's file and give up its lock; nothing if it is not held."""
        handle = self._held.pop(node_id, None)
        if handle is not None:
            _remove(self._path(node_id))
            os.close(handle)

    def close(self) -> None:
        """Give up all locks, leaving the files for whoever cleans up after these nodes."""
        while self._held:
            os.close(self._held.popitem()[1])

    def is_free(self, node_id: str) -> bool:
        """Whether nobody holds the node's lock, that is, its process is gone. Removes the file."""
        try:
            handle = os.open(self._path(node_id), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        except OSError:
            # Not ours to open: its lease will tell.
            return False
        try:
            if not _lock(handle):
                return False
            _remove(self._path(node_id))
            return True
        finally:
            os.close(handle)

    def lease_of(self, node_id: str) -> int | None:
        """How long the node's leases are; None if its file is gone or cannot be read."""
        try:
            with open(self._path(node_id), "rb") as file:
                return int(file.read())
        except (OSError, ValueError):
            return None

    def _path(self, node_id: str) -> str:
        return os.path.join(self._folder, f"{node_id}.lock")


_all_locks: weakref.WeakSet[NodeLocks] = weakref.WeakSet()


def _close_in_child() -> None:
    for locks in list(_all_locks):
        locks.close()


os.register_at_fork(after_in_child=_close_in_child)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
