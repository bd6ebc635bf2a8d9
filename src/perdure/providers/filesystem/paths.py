"""Instance ids as names of folders: pure text.

A name is lower-case ASCII, so that no two ids meet on a file system that ignores case or
normalises Unicode, and holds no dot, slash or colon, so that it names nothing but a folder of its
own on any system.
"""

from __future__ import annotations

import hashlib
import re

NAME_BYTES_MAX = 255

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(10)}
)
_HASHED = "~"
_NAME = re.compile(r"(?:[a-z0-9_-]|%[0-9a-f]{2})*(?:~[0-9a-f]{64})?|%")


def folder_name(instance_id: str) -> str:
    """The name of an instance's folder: at most 255 bytes, another one for every id.

    What is not a-z, 0-9, `-` or `_` becomes `%xx` for each byte of its UTF-8, and so does the first
    letter of a device's name and a leading dash. A name that would be too long is cut and ends in
    `~` and the id's SHA-256.
    """
    data = instance_id.encode()
    if instance_id in _DEVICES or data[:1] == b"-":
        name = _escaped(data[0]) + "".join(map(_kept, data[1:]))
    else:
        # A lone % is the escape of nothing.
        name = "".join(map(_kept, data)) or "%"
    if len(name) <= NAME_BYTES_MAX:
        return name
    ending = _HASHED + hashlib.sha256(data).hexdigest()
    kept = name[: NAME_BYTES_MAX - len(ending)]
    cut = kept.rfind("%", len(kept) - 2)
    return (kept if cut < 0 else kept[:cut]) + ending


def is_folder_name(name: str) -> bool:
    """Whether `folder_name` could have made it."""
    return bool(name) and len(name) <= NAME_BYTES_MAX and _NAME.fullmatch(name) is not None


def _kept(byte: int) -> str:
    return chr(byte) if byte in _PLAIN else _escaped(byte)


def _escaped(byte: int) -> str:
    return f"%{byte:02x}"
