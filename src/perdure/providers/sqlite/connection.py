"""Connections to the database file: their settings, verified; and what SQLite's errors mean."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import apsw

from perdure.errors import ProviderError, StoreUnavailable
from perdure.providers.sqlite.schema import check_version

BUSY_LOOK_S = 0.0005
STATEMENTS_CACHED = 400
PAGE_CACHE_KIB = 16 << 10

_FULL = 2
_UNAVAILABLE = (
    apsw.FullError,
    apsw.CantOpenError,
    apsw.IOError,
    apsw.NoMemError,
    apsw.LockedError,
    apsw.ProtocolError,
    apsw.InterruptError,
    apsw.AbortError,
)


@dataclass(frozen=True)
class Database:
    """Where the store is, and how long to wait for its write lock."""

    path: str
    lock_wait_ms: int

    def connect(self, create: bool = False) -> apsw.Connection:
        """A new connection with the settings that durability rests on, read back.

        create: make a missing file, with mode 0600, and the folders above it.
        Raises ProviderError, StoreTooNew.
        """
        is_new = create and not os.path.exists(self.path)
        flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
        try:
            if is_new:
                os.makedirs(os.path.dirname(self.path), exist_ok=True)
            connection = apsw.Connection(self.path, flags, statementcachesize=STATEMENTS_CACHED)
            if is_new:
                os.chmod(self.path, 0o600)
        except (apsw.CantOpenError, OSError) as error:
            raise ProviderError(
                f"cannot open {self.path}: {error}; check the path and its permissions"
            ) from error
        try:
            # A short look, often: with a plain busy_timeout a waiter sleeps up to 100 ms between
            # its looks, and starves beside a process that commits back to back.
            connection.set_busy_handler(_Patience(self.lock_wait_ms))
            if not check_version(connection, self.path) and not create:
                raise ProviderError(f"{self.path} was replaced by an empty file while in use")
            self._configure(connection)
        except apsw.Error as error:
            connection.close()
            raise self.explain(error) from error
        except ProviderError:
            connection.close()
            raise
        return connection

    def _configure(self, connection: apsw.Connection) -> None:
        self._use_wal(connection)
        self._set(connection, "synchronous", "full", _FULL)
        if sys.platform == "darwin":
            self._set(connection, "fullfsync", "1", 1)
            self._set(connection, "checkpoint_fullfsync", "1", 1)
        connection.execute("pragma temp_store = memory")
        connection.execute(f"pragma cache_size = -{PAGE_CACHE_KIB}")

    def _use_wal(self, connection: apsw.Connection) -> None:
        # SQLite does not ask the busy handler here, where waiting could be a deadlock.
        patience = _Patience(self.lock_wait_ms)
        looks = 0
        while True:
            try:
                self._set(connection, "journal_mode", "wal", "wal")
                break
            except apsw.BusyError:
                if not patience(looks):
                    raise
                looks += 1

    def _set(self, connection: apsw.Connection, name: str, value: str, expected: Any) -> None:
        connection.execute(f"pragma {name} = {value}").fetchall()
        found = connection.execute(f"pragma {name}").get
        if found != expected:
            raise ProviderError(
                f"{self.path}: SQLite refuses {name} = {value} (it stays {found!r}); "
                "use a local file system that supports it"
            )

    def identity(self) -> tuple[int, int] | None:
        """Which file the path names now: device and inode, or None for no file."""
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def explain(self, error: apsw.Error) -> ProviderError:
        """What an error of SQLite means to a caller."""
        if isinstance(error, apsw.BusyError):
            return StoreUnavailable(f"{self.path}: write lock held by another process")
        if isinstance(error, _UNAVAILABLE):
            return StoreUnavailable(f"{self.path} cannot be written or read now: {error}")
        if isinstance(error, apsw.CorruptError | apsw.NotADBError):
            return ProviderError(
                f"{self.path} is damaged or is not a SQLite database ({error}); restore a backup"
            )
        if isinstance(error, apsw.ConstraintError | apsw.MismatchError | apsw.TooBigError):
            return ProviderError(f"{self.path} does not accept a value: {error}")
        return ProviderError(f"{self.path}: {error}")


class _Patience:
    """A busy handler: look again every half millisecond, until the wait is over."""

    def __init__(self, wait_ms: int) -> None:
        self._wait_s = wait_ms / 1000
        self._give_up = 0.0

    def __call__(self, looks: int) -> bool:
        now = time.monotonic()
        if looks == 0:
            self._give_up = now + self._wait_s
        if now >= self._give_up:
            return False
        time.sleep(BUSY_LOOK_S)
        return True
