"""Ids and names: validated text. Compared by bytes, case-sensitive, never normalised."""

from __future__ import annotations

import re

from perdure.errors import InvalidName
from perdure.limits import INSTANCE_ID_BYTES_MAX, NAME_BYTES_MAX, VERSION_BYTES_MAX

SUB = "::sub::"
"""Part of every engine-made child id; not allowed in an id that a user gives."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*\Z")


def check_instance_id(instance_id: str) -> str:
    """The id itself, if a user may give it: 1 to 255 bytes of UTF-8, no controls, no `::sub::`."""
    _check(instance_id, "instance id", INSTANCE_ID_BYTES_MAX)
    if SUB in instance_id:
        raise InvalidName(
            f"instance id {instance_id!r} contains {SUB!r}, which marks ids made by the engine; "
            "choose another"
        )
    return instance_id


def check_name(name: str, what: str) -> str:
    """The name itself: 1 to 200 bytes of UTF-8, no controls. what: how errors call it."""
    return _check(name, what, NAME_BYTES_MAX)


def check_version(version: str) -> str:
    """The version itself: dotted integers such as "2" or "1.10", at most 64 bytes."""
    _check(version, "version", VERSION_BYTES_MAX)
    if not _VERSION.match(version):
        raise InvalidName(f'version {version!r} is not dotted integers such as "2" or "1.10"')
    return version


def version_key(version: str) -> tuple[int, ...]:
    """Orders versions numerically: 1.10 is later than 1.9."""
    return tuple(int(part) for part in version.split("."))


def _check(text: str, what: str, bytes_max: int) -> str:
    if not isinstance(text, str):
        raise InvalidName(f"{what} must be a string, not {type(text).__name__}")
    found = _CONTROL.search(text)
    if found:
        raise InvalidName(f"{what} {text!r} contains the character {found.group()!r}; remove it")
    size = len(text.encode())
    if not 1 <= size <= bytes_max:
        raise InvalidName(f"{what} has {size} bytes; 1 to {bytes_max} are allowed")
    return text
