"""Which instances are meant, and where a page of them begins."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import get_args

from perdure.providers.contract import RowFilter, Status

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceFilter:
    """Instances for which every field given holds; without a field, all of them.

    id_prefix: how the instance id begins. parent: the id of the instance that awaits it. blocked:
    whether something keeps it from going on. Times are aware datetimes, compared by the store's
    clock; the time itself is not part of either side, and what is not finished is neither
    finished_after nor finished_before any time. Raises ValueError or TypeError for anything else.
    """

    status: Status | None = None
    name: str | None = None
    version: str | None = None
    id_prefix: str | None = None
    parent: str | None = None
    blocked: bool | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    finished_after: datetime | None = None
    finished_before: datetime | None = None

    def __post_init__(self) -> None:
        if self.status is not None and self.status not in get_args(Status):
            raise ValueError(f"status is one of {', '.join(get_args(Status))}, not {self.status!r}")
        for field in ("name", "version", "id_prefix", "parent"):
            _check_text(field, getattr(self, field))
        if self.blocked is not None and not isinstance(self.blocked, bool):
            raise TypeError(f"blocked must be True, False or None, not {self.blocked!r}")
        for field in ("created_after", "created_before", "finished_after", "finished_before"):
            _check_time(field, getattr(self, field))

    def rows(self) -> RowFilter:
        """The same, as the store is asked."""
        return RowFilter(
            status=self.status,
            name=self.name,
            version=self.version,
            id_prefix=self.id_prefix,
            parent=self.parent,
            blocked=self.blocked,
            created_after_ms=_floor_ms(self.created_after),
            created_before_ms=_ceil_ms(self.created_before),
            finished_after_ms=_floor_ms(self.finished_after),
            finished_before_ms=_ceil_ms(self.finished_before),
        )


def check_filter(filter: InstanceFilter | None) -> InstanceFilter:
    """The filter itself; for None the one that fits all. Raises TypeError for anything else."""
    if filter is None:
        return InstanceFilter()
    if not isinstance(filter, InstanceFilter):
        raise TypeError(f"filter must be an InstanceFilter, not {filter!r}")
    return filter


def cursor_after(key: int) -> str:
    """The cursor of the page that begins after the instance of this key: text without a meaning
    for its reader."""
    digits = f"{key:016x}"
    return f"{digits}{zlib.crc32(digits.encode()):08x}"


def key_of(cursor: str | None) -> int:
    """The key after which the page begins; 0 for the first one. Raises ValueError for a text that
    is no cursor."""
    if cursor is None:
        return 0
    if not isinstance(cursor, str):
        raise TypeError(f"a cursor is a text that a page gave, not {cursor!r}")
    try:
        key = int(cursor[:16], 16)
    except ValueError:
        key = -1
    if cursor_after(key) != cursor:
        raise ValueError(f"{cursor!r} is no cursor: pass one as a page gave it, or None")
    return key


def _check_text(field: str, value: str | None) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"{field} must be a text or None, not {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{field} {value!r} is no text that UTF-8 can hold") from None


def _check_time(field: str, value: datetime | None) -> None:
    if value is None:
        return
    if not isinstance(value, datetime):
        raise TypeError(f"{field} must be an aware datetime or None, not {value!r}")
    if value.utcoffset() is None:
        raise ValueError(f"{field} {value!r} has no time zone; use an aware datetime")


def _floor_ms(value: datetime | None) -> int | None:
    return None if value is None else (value - EPOCH) // MILLISECOND


def _ceil_ms(value: datetime | None) -> int | None:
    return None if value is None else -((EPOCH - value) // MILLISECOND)
