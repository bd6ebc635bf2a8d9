"""What is asked of the operating system: durable writes, and opening without following links."""

from __future__ import annotations

import errno
import fcntl
import os
import sys

from perdure.errors import ProviderError, StoreUnavailable

FILE_MODE = 0o600
FOLDER_MODE = 0o700

_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW
_UNAVAILABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
}


def write(handle: int, data: bytes | bytearray, offset: int) -> None:
    """Write all of it at this place of the file."""
    left = memoryview(data)
    while left:
        written = os.pwrite(handle, left, offset)
        left, offset = left[written:], offset + written


def append(handle: int, data: bytes) -> None:
    """Write all of it to the end of a file that was opened for that."""
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]


def sync(handle: int) -> None:
    """Return when what was written, and the length, would survive a loss of power."""
    if sys.platform == "darwin":
        fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(handle)


def sync_folder(handle: int) -> None:
    """The same for names made, changed and removed in a folder."""
    os.fsync(handle)


def truncate(handle: int, size: int) -> None:
    """Cut the file to `size` bytes."""
    os.ftruncate(handle, size)


def open_file(folder: int, name: str, flags: int) -> int:
    """A file of a folder, made with mode 0600 if `flags` say so. Raises OSError for a link."""
    return os.open(name, flags | _OPEN, FILE_MODE, dir_fd=folder)


def open_folder(folder: int, name: str, create: bool = False) -> int:
    """A folder in a folder, made with mode 0700 if asked. Raises OSError for a link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | _OPEN
    try:
        return os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        if not create:
            raise
        os.mkdir(name, FOLDER_MODE, dir_fd=folder)
        return os.open(name, flags, dir_fd=folder)


def open_root(path: str) -> int:
    """The folder at `path`, made with those above it if they do not exist, durably."""
    missing = []
    at = path
    while not os.path.lexists(at):
        missing.append(at)
        at = os.path.dirname(at)
    for each in reversed(missing):
        os.mkdir(each, FOLDER_MODE)
        above = os.open(os.path.dirname(each), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_folder(above)
        finally:
            os.close(above)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def explain(path: str, error: OSError) -> ProviderError:
    """What an error of the system means to a caller. path: what was being used."""
    if error.errno in _UNAVAILABLE:
        return StoreUnavailable(f"{path} cannot be written or read now: {error.strerror}")
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return ProviderError(
            f"{path} is a symbolic link or not a folder, and a store follows no links: "
            f"{error.strerror}; remove it"
        )
    return ProviderError(f"cannot use {path}: {error.strerror}; check the path and its permissions")
