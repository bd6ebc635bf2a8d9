"""The external ledger: what really happened, kept outside the store under test.

One file, only appended to. A line is one record of fixed length, written by a single `write` with
O_APPEND and synced before the writer goes on: records never cross a page, so that a process killed
inside `write` leaves a whole line or none.

    <milliseconds> <pid> begin <key> <attempt> <nonce>         an activity begins
    <milliseconds> <pid> end <key> <nonce>                     it has had its effect
    <milliseconds> <pid> intent|ok start <instance> [new|old]
    <milliseconds> <pid> intent|ok event <instance> <name> <data>
    <milliseconds> <pid> intent|ok cancel <instance>
    <milliseconds> <pid> result <instance> <status> <digest>   a caller was given this result
    <milliseconds> <pid> spawn <pid of a worker>               it has been started
    <milliseconds> <pid> kill <pid of a worker>                it is killed, or has done it
    <milliseconds> <pid> pause <pid of a worker>               it is stopped by SIGSTOP
    <milliseconds> <pid> back <node>                           it goes on as this other node
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

RECORD_BYTES = 128


@dataclass(frozen=True, slots=True)
class Line:
    """place: its number in the file, from 0. at_ms: the host's clock when it was written."""

    place: int
    at_ms: int
    pid: int
    word: str
    args: tuple[str, ...]


class Ledger:
    """For writing; any number of processes and threads may write at once."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o600)

    def write(self, word: str, *args: object) -> None:
        """Add one line; it is on the disk when this returns."""
        now_ms = time.time_ns() // 1_000_000
        text = " ".join(map(str, (now_ms, os.getpid(), word, *args)))
        record = text.encode("ascii").ljust(RECORD_BYTES - 1) + b"\n"
        assert len(record) == RECORD_BYTES, f"too long for a line: {text}"
        assert os.write(self._file, record) == RECORD_BYTES
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


class Tail:
    """Reads a ledger from its beginning, and each time what has come since."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new(self) -> list[Line]:
        """The lines since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read * RECORD_BYTES)
                data = file.read()
        except FileNotFoundError:
            return []
        number = len(data) // RECORD_BYTES
        first, self._read = self._read, self._read + number
        return [
            parse(first + at, data[at * RECORD_BYTES : (at + 1) * RECORD_BYTES])
            for at in range(number)
        ]


def read_ledger(path: Path) -> list[Line]:
    """All lines so far."""
    return Tail(path).new()


def parse(place: int, record: bytes) -> Line:
    """The line of one record; raises ValueError if it is none."""
    if record[-1:] != b"\n" or b"\n" in record[:-1]:
        raise ValueError(f"line {place} of the ledger is torn: {record!r}")
    at_ms, pid, word, *args = record.decode("ascii").split()
    return Line(place, int(at_ms), int(pid), word, tuple(args))
