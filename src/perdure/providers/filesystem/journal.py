"""The journal: one file that is only ever appended to, or replaced by another in one step.

It begins with the store's rows as of some moment, up to `base`; what was written since follows, one
record a commit, each durable before the next is begun. So only the last record can be incomplete
after a crash. Marker and checksum depend on a random number in the head and on the record's place:
a record that is copied into a payload is none.
"""

from __future__ import annotations

import os
import secrets
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import BinaryIO

from perdure.errors import ProviderError, StoreTooNew
from perdure.providers.filesystem import disk

NAME = "journal"
NEW_NAME = "journal.new"
FORMAT = 1
"""To be raised with every change of what a record says, or of what an operation does."""

RECORD_BYTES_MAX = (1 << 32) - 1
_MAGIC = b"perdure journal\n"
_HEAD = struct.Struct(">16sI16sQ")
_CHECKED_HEAD = struct.Struct(">I")
_RECORD = struct.Struct(">8sII")
_PLACE = struct.Struct(">QI")
_HEAD_BYTES = _HEAD.size + _CHECKED_HEAD.size
_BUFFER_BYTES = 1 << 20


class Frame:
    """How records look in one file."""

    def __init__(self, salt: bytes) -> None:
        self.marker = salt[:8]
        self._seed = zlib.crc32(salt)

    def record(self, payload: bytes, offset: int) -> bytes:
        """The record that holds `payload` at `offset`."""
        if len(payload) > RECORD_BYTES_MAX:
            raise ProviderError(f"a batch of {len(payload)} bytes is too long for the journal")
        return _RECORD.pack(self.marker, len(payload), self._sum(payload, offset)) + payload

    def payload(self, head: bytes, read: Callable[[int], bytes], offset: int) -> bytes | None:
        """What the record at `offset` holds, or None if there is no valid one."""
        if len(head) < _RECORD.size:
            return None
        marker, length, checksum = _RECORD.unpack(head)
        if marker != self.marker:
            return None
        payload = read(length)
        if len(payload) < length or self._sum(payload, offset) != checksum:
            return None
        return payload

    def _sum(self, payload: bytes, offset: int) -> int:
        return zlib.crc32(payload, zlib.crc32(_PLACE.pack(offset, len(payload)), self._seed))


class Journal:
    """An open journal in the folder `folder` (a handle). path: how errors call it.

    size: the length up to which it is valid and durable. failed: why nothing more is accepted.
    """

    def __init__(self, folder: int, path: str) -> None:
        self.path = path
        self.size = 0
        self.base = 0
        self.failed: str | None = None
        self._folder = folder
        self._handle = -1
        self._frame: Frame

    def load(self, accept: Callable[[bytes], None]) -> bool:
        """Open the journal and hand over what each record holds; False if there is no file.

        An incomplete end is cut off. Raises StoreTooNew, and ProviderError for a damaged file, of
        which nothing is changed.
        """
        try:
            self._handle = disk.open_file(self._folder, NAME, os.O_RDWR)
        except FileNotFoundError:
            return False
        with open(self._handle, "rb", _BUFFER_BYTES, closefd=False) as file:
            self._read_head(file)
            for payload in self._records(file):
                try:
                    accept(payload)
                except ProviderError as error:
                    raise ProviderError(f"{self.path} at byte {self.size}: {error}") from error
        length = os.fstat(self._handle).st_size
        if self.size < length:
            self._check_end(length)
            disk.truncate(self._handle, self.size)
            disk.sync(self._handle)
        return True

    def _read_head(self, file: BinaryIO) -> None:
        data = file.read(_HEAD_BYTES)
        if len(data) < _HEAD_BYTES or not data.startswith(_MAGIC):
            raise ProviderError(f"{self.path} is not a journal of Perdure")
        _, format, salt, self.base = _HEAD.unpack_from(data)
        if format > FORMAT:
            raise StoreTooNew(
                f"{self.path} has format {format}, and this Perdure knows {FORMAT}; upgrade it"
            )
        if _CHECKED_HEAD.unpack_from(data, _HEAD.size) != (zlib.crc32(data[: _HEAD.size]),):
            raise self._damaged(0)
        self._frame = Frame(salt)
        self.size = _HEAD_BYTES

    def _records(self, file: BinaryIO) -> Iterator[bytes]:
        while True:
            payload = self._frame.payload(file.read(_RECORD.size), file.read, self.size)
            if payload is None:
                return
            yield payload
            self.size += _RECORD.size + len(payload)

    def _check_end(self, length: int) -> None:
        """Raise if what follows the valid records is more than one incomplete record."""
        if self.size < self.base:
            raise self._damaged(self.size)
        rest = os.pread(self._handle, length - self.size, self.size)
        at = rest.find(self._frame.marker, 1)
        while at >= 0:
            head, after = rest[at : at + _RECORD.size], at + _RECORD.size
            found = self._frame.payload(head, lambda n: rest[after : after + n], self.size + at)  # noqa: B023
            if found is not None:
                raise self._damaged(self.size)
            at = rest.find(self._frame.marker, at + 1)

    def _damaged(self, offset: int) -> ProviderError:
        return ProviderError(
            f"{self.path} is damaged at byte {offset}; nothing was changed. "
            "Restore the whole folder from a backup"
        )

    def append(self, payload: bytes) -> None:
        """Write one record, durable on return.

        Raises StoreUnavailable or ProviderError if that failed; nothing of it is left then. If it
        cannot even be removed, every later call fails too.
        """
        if self.failed:
            raise ProviderError(self.failed)
        record = self._frame.record(payload, self.size)
        try:
            disk.write(self._handle, record, self.size)
            disk.sync(self._handle)
        except OSError as error:
            self._cut_back(error)
            raise disk.explain(self.path, error) from error
        self.size += len(record)

    def _cut_back(self, error: OSError) -> None:
        try:
            disk.truncate(self._handle, self.size)
            # Or the record could be there again after a loss of power.
            disk.sync(self._handle)
        except OSError:
            self.failed = (
                f"{self.path} could not be written ({error.strerror}), nor set right again; "
                "whether the last commit was made shows when the store is opened again"
            )
            raise ProviderError(self.failed) from error

    def replace(self, payloads: Iterable[bytes]) -> None:
        """Make a new journal out of these records, in place of the old one if there is one.

        On an error (StoreUnavailable, ProviderError) the old one goes on, unless `failed` says
        otherwise.
        """
        try:
            with ExitStack() as undo:
                handle, frame, size = self._write_new(payloads, undo)
                os.rename(NEW_NAME, NAME, src_dir_fd=self._folder, dst_dir_fd=self._folder)
                undo.pop_all()
        except OSError as error:
            raise disk.explain(self.path, error) from error
        self.close()
        self._handle, self._frame = handle, frame
        self.size = self.base = size
        try:
            disk.sync_folder(self._folder)
        except OSError as error:
            # After a loss of power the old one could be back.
            self.failed = f"{self.path} was written anew, but not for good: {error.strerror}"
            raise ProviderError(self.failed) from error

    def _write_new(self, payloads: Iterable[bytes], undo: ExitStack) -> tuple[int, Frame, int]:
        remove_new(self._folder)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        handle = disk.open_file(self._folder, NEW_NAME, flags)
        undo.callback(remove_new, self._folder)
        undo.callback(os.close, handle)
        salt = secrets.token_bytes(16)
        frame, size, buffer = Frame(salt), _HEAD_BYTES, bytearray()
        for payload in payloads:
            record = frame.record(payload, size)
            size += len(record)
            buffer += record
            if len(buffer) >= _BUFFER_BYTES:
                disk.write(handle, buffer, size - len(buffer))
                buffer.clear()
        disk.write(handle, buffer, size - len(buffer))
        # Last, because only now is it known where the rows end.
        head = _HEAD.pack(_MAGIC, FORMAT, salt, size)
        disk.write(handle, head + _CHECKED_HEAD.pack(zlib.crc32(head)), 0)
        disk.sync(handle)
        return handle, frame, size

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def remove_new(folder: int) -> None:
    """Remove what an interrupted `replace` has left."""
    try:
        os.unlink(NEW_NAME, dir_fd=folder)
    except FileNotFoundError:
        return
