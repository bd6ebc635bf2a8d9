"""Durations: what users write (seconds or timedelta) to what is stored (whole milliseconds)."""

from __future__ import annotations

import math
from datetime import timedelta

from perdure.errors import InvalidTimer
from perdure.limits import TIMER_MS_MAX

Duration = int | float | timedelta
"""Seconds, or a timedelta."""


def to_ms(duration: Duration) -> int:
    """Whole milliseconds, rounded up; below zero counts as zero.

    Raises InvalidTimer for NaN, infinity, more than 3,650 days, or another type.
    """
    if isinstance(duration, timedelta):
        seconds: int | float = duration.total_seconds()
    elif isinstance(duration, int | float) and not isinstance(duration, bool):
        seconds = duration
    else:
        raise InvalidTimer(
            f"a duration is seconds or a timedelta, not {type(duration).__name__}: {duration!r}"
        )
    if isinstance(seconds, float) and not math.isfinite(seconds):
        raise InvalidTimer(f"a duration must be finite, not {seconds!r}")
    if seconds * 1000 > TIMER_MS_MAX:
        raise InvalidTimer(f"a duration is at most 3,650 days, not {seconds!r} seconds")
    # Rounded to the microsecond first: 0.07 * 1000 is 70.00000000000001, which is no 71st
    # millisecond, and a difference of two epoch times carries an error of that order.
    return max(0, math.ceil(round(seconds * 1000, 3)))
