"""The options of a runtime, validated when they are constructed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """max_activities: how many `async def` activities run at once (1 to 10,000). max_threads: how
    many plain `def` ones, each in a thread (1 to 1,000). max_residents: how many idle
    instances are kept in memory (0 to 1,000,000; 0 evicts after every turn). lease_s: how long a
    node that gives no sign of life keeps its claims where its death cannot be seen (1 to 3,600).
    turn_timeout_s: after how long a turn that does not yield is interrupted (0.1 to 3,600).
    """

    max_activities: int = 1_000
    max_threads: int = 32
    max_residents: int = 2_000
    lease_s: float = 10.0
    turn_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        self._check("max_activities", 1, 10_000)
        self._check("max_threads", 1, 1_000)
        self._check("max_residents", 0, 1_000_000)
        self._check("lease_s", 1, 3_600)
        self._check("turn_timeout_s", 0.1, 3_600)

    def _check(self, field: str, low: float, high: float) -> None:
        value = getattr(self, field)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{field} must be a number, not {value!r}")
        if not low <= value <= high:
            raise ValueError(f"{field} must be {low:,} to {high:,}, not {value!r}")
